{{/* What everything is called: the DaemonSet, its ConfigMap, its account and its rights. */}}
{{- define "mesh-agent.name" -}}
{{- .Values.nameOverride | default "mesh-agent" -}}
{{- end -}}

{{/* By what the agents' pods are selected: a DaemonSet cannot change it. */}}
{{- define "mesh-agent.selector" -}}
app.kubernetes.io/name: {{ include "mesh-agent.name" . }}
app.kubernetes.io/component: agent
{{- end -}}

{{/* The labels of every object. */}}
{{- define "mesh-agent.labels" -}}
{{ include "mesh-agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "mesh-agent.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "mesh-agent.name" .) -}}
{{- else -}}
{{- required "serviceAccount.name must name the account where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "mesh-agent.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What confines each container besides its capabilities. */}}
{{- define "mesh-agent.profiles" -}}
seccompProfile:
  type: RuntimeDefault
{{- if semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version }}
# The default AppArmor profile of container runtimes forbids entering other namespaces.
appArmorProfile:
  type: Unconfined
{{- end }}
{{- with .Values.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where the container runtime's socket is mounted from; nothing where it is below /run, which is mounted whole. */}}
{{- define "mesh-agent.criDirectory" -}}
{{- $path := trimPrefix "unix://" (.Values.criSocket | default "auto") -}}
{{- if and (hasPrefix "/" $path) (not (hasPrefix "/run/" $path)) -}}
{{- if hasPrefix "/var/run/" $path -}}
{{- fail (printf "criSocket is %s: say /run/… instead, the directory that the agent sees" $path) -}}
{{- end -}}
{{- dir $path -}}
{{- end -}}
{{- end -}}

{{/* The settings file: `settings` as given, and what other values say. What is in both is an error, so that neither is lost in silence. */}}
{{- define "mesh-agent.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- range $key, $value := dict
      "nodeName" "the node's own name"
      "configDir" "a ConfigMap cannot be watched there"
      "caDir" "caSecretName"
      "caSecretDir" "caSecretName"
      "adminSocket" "its fixed place, which meshctl expects"
      "bpffsDir" "its fixed place"
      "stateDir" "stateDir"
      "cgroupRoot" "cgroup.root"
      "kubeletCgroup" "cgroup.kubelet"
      "metricsAddress" "metrics.port"
      "readinessAddress" "readinessPort"
      "cni" "cni" -}}
{{- if hasKey $settings $key -}}
{{- fail (printf "settings.%s is not for the settings file here; it is given by: %s" $key $value) -}}
{{- end -}}
{{- end -}}
{{- if hasKey ($settings.defaultConfig | default dict) "terminationDrainDuration" -}}
{{- fail "settings.defaultConfig.terminationDrainDuration is given by: drainSeconds" -}}
{{- end -}}
{{- range $key, $value := dict "criSocket" "criSocket" "cgroup" "cgroup.pods" -}}
{{- if hasKey ($settings.pods | default dict) $key -}}
{{- fail (printf "settings.pods.%s is given by: %s" $key $value) -}}
{{- end -}}
{{- end -}}
{{- if hasKey ($settings.kubernetes | default dict) "daemonSet" -}}
{{- fail "settings.kubernetes.daemonSet is given by: nameOverride and the release's namespace" -}}
{{- end -}}
{{- /* When this is deleted, the agents let their pods go and remove the CNI plugin. */ -}}
{{- $_ := set $settings "kubernetes" (merge (dict "daemonSet" (printf "%s/%s" .Release.Namespace (include "mesh-agent.name" .))) ($settings.kubernetes | default dict)) -}}
{{- if .Values.cni.enabled -}}
{{- $cni := dict "enabled" true "excludeNamespaces" (append .Values.cni.excludeNamespaces .Release.Namespace | uniq | sortAlpha) -}}
{{- if ne .Values.cni.confDir "/etc/cni/net.d" }}{{ $_ := set $cni "confDir" .Values.cni.confDir }}{{ end -}}
{{- if ne .Values.cni.binDir "/opt/cni/bin" }}{{ $_ := set $cni "binDir" .Values.cni.binDir }}{{ end -}}
{{- if ne (int .Values.cni.waitSeconds) 30 }}{{ $_ := set $cni "wait" (printf "%ds" (int .Values.cni.waitSeconds)) }}{{ end -}}
{{- $_ := set $settings "cni" $cni -}}
{{- end -}}
{{- $_ := set $settings "defaultConfig" (merge (dict "terminationDrainDuration" (printf "%ds" (int .Values.drainSeconds))) ($settings.defaultConfig | default dict)) -}}
{{- if ne .Values.stateDir "/var/lib/mesh-agent" -}}
{{- $_ := set $settings "stateDir" .Values.stateDir -}}
{{- end -}}
{{- with .Values.cgroup.root }}{{ $_ := set $settings "cgroupRoot" . }}{{ end -}}
{{- if ne .Values.cgroup.kubelet "auto" -}}
{{- $_ := set $settings "kubeletCgroup" .Values.cgroup.kubelet -}}
{{- end -}}
{{- $pods := $settings.pods | default dict -}}
{{- with .Values.cgroup.pods }}{{ $_ := set $pods "cgroup" . }}{{ end -}}
{{- if ne .Values.criSocket "auto" -}}
{{- $_ := set $pods "criSocket" .Values.criSocket -}}
{{- end -}}
{{- with $pods }}{{ $_ := set $settings "pods" . }}{{ end -}}
{{- if ne (int .Values.metrics.port) 15020 -}}
{{- $_ := set $settings "metricsAddress" (printf "[::]:%d" (int .Values.metrics.port)) -}}
{{- end -}}
{{- if ne (int .Values.readinessPort) 15021 -}}
{{- $_ := set $settings "readinessAddress" (printf "[::]:%d" (int .Values.readinessPort)) -}}
{{- end -}}
# The settings of all agents, as docs/configuration.md lists them. An unknown key is an error: the agent says so and does not start.
# They count from an agent's next start.
{{ toYaml $settings }}
{{- end -}}
