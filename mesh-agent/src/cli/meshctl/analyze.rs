//! `meshctl analyze`: what is wrong with documents, without an agent or with one.

use std::path::PathBuf;

use clap::Args;
use mesh_core::analyze::{self, Severity};

use super::{Ask, CtlError, Exit, Output, print, render};
use crate::admin::document::Analysis;
use crate::settings::{Settings, SettingsArgs};
use crate::sources::read_documents;

/// What to look at.
#[derive(Debug, Args)]
pub struct AnalyzeArgs {
    /// Files, or directories with *.yaml, *.yml and *.json in and below them; - is standard input. No agent is asked then.
    #[arg(short, long = "filename", value_name = "FILE|DIR", num_args = 1..)]
    pub files: Vec<PathBuf>,
    /// The agents' settings file, for the trust domain and the root namespace [default: the agents' defaults]
    #[arg(long, value_name = "FILE", requires = "files")]
    pub settings: Option<PathBuf>,
    /// Warnings count as errors: exit code 1.
    #[arg(long)]
    pub strict: bool,
}

impl Ask<'_> {
    /// Finds, prints, and says by the exit code whether there is anything to correct.
    pub(super) async fn analyze(&self, args: &AnalyzeArgs) -> Result<Exit, CtlError> {
        let analysis: Analysis = match args.files.as_slice() {
            [] => serde_json::from_slice(&self.bytes("/analyze").await?)?,
            paths => of_files(paths, args.settings.as_ref())?,
        };
        print(&match self.cli.output {
            Output::Json => serde_json::to_string_pretty(&analysis)?,
            Output::Table => render::analysis(&analysis),
        })?;
        Ok(exit(&analysis, args.strict))
    }
}

fn of_files(paths: &[PathBuf], settings: Option<&PathBuf>) -> Result<Analysis, CtlError> {
    let args = SettingsArgs {
        settings: settings.cloned(),
        ..SettingsArgs::default()
    };
    let mesh = Settings::load(&args)?.mesh();
    let documents = read_documents(paths, std::io::stdin().lock())?;
    let files: Vec<(&str, &[u8])> = documents
        .iter()
        .map(|document| (document.name.as_str(), document.bytes.as_slice()))
        .collect();
    Ok(Analysis {
        findings: analyze::files(mesh, settings.is_some(), &files),
    })
}

fn exit(analysis: &Analysis, strict: bool) -> Exit {
    let worst = analysis.findings.iter().map(|finding| finding.severity).min();
    match worst {
        Some(Severity::Error) => Exit::Failure,
        Some(Severity::Warning) if strict => Exit::Failure,
        _ => Exit::Success,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, run};
    use super::*;

    const CLEAN: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    const INFO: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n";
    const WARNING: &str =
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtsl: {}}\n";
    const ERROR: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: SHOP}\n";

    async fn ctl(args: &[&str]) -> Exit {
        let cli = Cli::try_parse_from(
            ["meshctl", "--socket", "/nonexistent/admin.sock", "analyze"]
                .iter()
                .chain(args),
        );
        run(cli.unwrap()).await
    }

    #[tokio::test]
    async fn the_exit_code_tells_the_worst_finding_without_an_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let file = path.to_str().unwrap();
        for (text, plain, strict) in [
            (CLEAN, Exit::Success, Exit::Success),
            (INFO, Exit::Success, Exit::Success),
            (WARNING, Exit::Success, Exit::Failure),
            (ERROR, Exit::Failure, Exit::Failure),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(ctl(&["-f", file]).await, plain, "{text}");
            assert_eq!(
                ctl(&["-f", file, "--strict", "-o", "json"]).await,
                strict,
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_has_the_code_of_bad_settings_and_no_agent_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("good.yaml"), CLEAN).unwrap();
        std::fs::write(at("settings.yaml"), "trustDomian: x\n").unwrap();
        std::fs::create_dir(at("empty")).unwrap();
        assert_eq!(ctl(&["-f", &at("gone.yaml")]).await, Exit::Settings);
        assert_eq!(ctl(&["-f", &at("empty")]).await, Exit::Settings);
        assert_eq!(
            ctl(&["-f", &at("good.yaml"), "--settings", &at("settings.yaml")]).await,
            Exit::Settings
        );
        assert_eq!(ctl(&[]).await, Exit::NoAgent);
        assert!(Cli::try_parse_from(["meshctl", "analyze", "--settings", "x"]).is_err());
    }

    #[test]
    fn settings_tell_whose_trust_domain_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (documents, settings) = (dir.path().join("a.yaml"), dir.path().join("settings.yml.txt"));
        std::fs::write(
            &documents,
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  rules:\n  - \
             from:\n    - source:\n        principals: [prod.example/ns/web/sa/front]\n",
        )
        .unwrap();
        std::fs::write(&settings, "trustDomain: other.example\n").unwrap();
        let codes = |settings: Option<&PathBuf>| -> Vec<String> {
            let analysis = of_files(std::slice::from_ref(&documents), settings).unwrap();
            analysis.findings.iter().map(|one| one.code.to_string()).collect()
        };
        assert_eq!(codes(None), Vec::<String>::new());
        assert_eq!(codes(Some(&settings)), ["MESH0207"]);
    }

    #[test]
    fn findings_are_shown_with_place_object_and_advice_and_in_json_with_each_apart() {
        let findings = analyze::files(
            Settings::load(&SettingsArgs::default()).unwrap().mesh(),
            false,
            &[("a.yaml", WARNING.as_bytes())],
        );
        let analysis = Analysis { findings };
        let text = render::analysis(&analysis);
        assert!(
            text.contains(
                "a.yaml:4:8: warning MESH0104 PeerAuthentication default/a\n  unknown field spec.mtsl"
            ),
            "{text}"
        );
        assert!(text.contains("0 errors, 1 warnings, 1 infos"), "{text}");
        let json = serde_json::to_value(&analysis).unwrap();
        let first = &json["findings"][1];
        assert_eq!(first["code"], "MESH0104");
        assert_eq!(first["severity"], "warning");
        assert_eq!(first["origin"]["line"], 4);
        assert_eq!(first["object"]["kind"], "PeerAuthentication");
        let back: Analysis = serde_json::from_value(json).unwrap();
        assert_eq!(back, analysis);
    }
}
