"""What Helm makes of a chart, as JSON on standard output. Helm is the real one: its Go library, by the package helm-python-sdk.

    helm.py render CHART [--name NAME] [--namespace NAMESPACE] [--values FILE]    {template: text}
    helm.py lint CHART [--values FILE] [--kube-version VERSION]                   Helm's report

CHART is a directory or a .tgz. Values are YAML or JSON; `-` is standard input. They are checked by the chart's schema first. What Helm refuses is
said on standard error, with exit code 1. No cluster and no network is asked.
"""

import argparse
import json
import sys

import helm_python


def values(path):
    if path is None:
        return {}
    if path == "-":
        return helm_python.values_from_yaml(sys.stdin.read())
    with open(path, encoding="utf-8") as file:
        return helm_python.values_from_yaml(file.read())


def render(arguments):
    given = values(arguments.values)
    with helm_python.Chart.load(arguments.chart) as chart:
        chart.validate_schema(given)
        return chart.render(given, name=arguments.name, namespace=arguments.namespace)


def lint(arguments):
    return helm_python.lint(
        arguments.chart,
        values(arguments.values),
        strict=True,
        namespace=arguments.namespace,
        kube_version=arguments.kube_version,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["render", "lint"])
    parser.add_argument("chart")
    parser.add_argument("--name", default="mesh-agent")
    parser.add_argument("--namespace", default="mesh-system")
    parser.add_argument("--values")
    parser.add_argument("--kube-version")
    arguments = parser.parse_args()
    try:
        made = render(arguments) if arguments.verb == "render" else lint(arguments)
    except (helm_python.HelmError, OSError, UnicodeDecodeError) as error:
        sys.exit(f"helm: {error}")
    json.dump(made, sys.stdout, indent=1, sort_keys=True)


if __name__ == "__main__":
    main()
