use serde_json::{Value, json};

use super::{Context, Template};

struct Fixed;

impl Context for Fixed {
    fn now(&self) -> String {
        "2026-01-02T03:04:05Z".to_owned()
    }
    fn start_time(&self) -> String {
        "2026-01-01T00:00:00Z".to_owned()
    }
    fn version(&self) -> String {
        "v1".to_owned()
    }
    fn node_ip(&self, node: &str) -> String {
        format!("ip of {node}")
    }
    fn node_name(&self) -> String {
        "n".to_owned()
    }
    fn node_port(&self) -> i64 {
        10250
    }
    fn pod_ip(&self, node: &str, host_network: bool, uid: &str) -> String {
        format!("{node} {host_network} {uid}")
    }
}

fn object() -> Value {
    json!({
        "metadata": {"uid": "u", "labels": {"b": "2", "a": "1"}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "one", "image": "i\"1"}, {"name": "two", "image": "i2"}]},
    })
}

fn check(template: &str, expect: &str) {
    let template = Template::parse(template).unwrap();
    assert_eq!(template.render(&object(), &Fixed).unwrap(), expect);
}

#[test]
fn values_are_printed_as_in_go() {
    check("a {{ .spec.nodeName }} b", "a node-1 b");
    check("{{ .spec.nothing.at.all }}", "<no value>");
    check(
        "{{ $now := Now }}{{ $now | Quote }}",
        "\"2026-01-02T03:04:05Z\"",
    );
    check(
        "{{ (index .spec.containers 0).image | Quote }}",
        "\"i\\\"1\"",
    );
    check("{{ index .metadata.labels \"a\" }}", "1");
    check("{{ len .spec.containers }} {{ print 1 `x` }}", "2 1x");
    check("{{/* nobody */}}x{{- /* nobody */ -}} y", "xy");
    check("a \n{{- true -}}\n b", "atrueb");
    check(
        "{{ PodIPWith .spec.nodeName ( or .spec.hostNetwork false ) ( or .metadata.uid \"\" ) ( or .metadata.name \"\" ) | Quote }}",
        "\"node-1 false u\"",
    );
    check("{{ YAML .metadata.labels }}", "{\"a\":\"1\",\"b\":\"2\"}");
}

#[test]
fn blocks_choose_and_repeat() {
    check("{{ if .spec.initContainers }}a{{ else }}b{{ end }}", "b");
    check(
        "{{ if false }}a{{ else if eq .metadata.uid `x` `u` }}b{{ else }}c{{ end }}",
        "b",
    );
    check(
        "{{ range .spec.containers }}[{{ .name }}{{ $.metadata.uid }}]{{ end }}",
        "[oneu][twou]",
    );
    check(
        "{{ range $i, $c := .spec.containers }}{{ $i }}{{ $c.name }}{{ end }}",
        "0one1two",
    );
    check(
        "{{ range $k, $v := .metadata.labels }}{{ $k }}={{ $v }};{{ end }}",
        "a=1;b=2;",
    );
    check("{{ range .spec.none }}a{{ else }}b{{ end }}", "b");
    check(
        "{{ with .metadata }}{{ .uid }}{{ end }}{{ with .none }}x{{ end }}",
        "u",
    );
    check(
        "{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}",
        "2",
    );
    check(
        "{{ if and (gt 2 1) (not (lt 2 1)) (ne 1 2) }}y{{ end }}",
        "y",
    );
}

#[test]
fn what_is_not_understood_is_named_with_its_line() {
    let check = |template: &str, expect: &str| {
        let error = Template::parse(template).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    check("\n{{ upper .a }}", "line 2: function \"upper\" not defined");
    check("{{ define \"x\" }}{{ end }}", "\"define\" is not built");
    check("{{ template \"x\" }}", "\"template\" is not built");
    check("{{ if .a }}", "not closed");
    check("{{ end }}", "unexpected {{end}}");
    check("{{ .a .b }}", "no function");
    check("{{ .a", "unclosed action");
    check("{{ ( .a }}", "bracket is not closed");
    check("{{ }}", "missing value");
    check(&"{{ if true }}".repeat(100), "too deep");
    check(&format!("{{{{ {} }}}}", "(".repeat(100)), "too deep");
}

#[test]
fn a_bad_value_is_an_error_and_no_panic() {
    let check = |template: &str, expect: &str| {
        let template = Template::parse(template).unwrap();
        let error = template.render(&object(), &Fixed).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    check("{{ len 1 }}", "no length");
    check("{{ index }}", "argument is missing");
    check("{{ lt 1 `a` }}", "incompatible types");
    check("{{ $x }}", "undefined variable $x");
    check("{{ range 1 }}{{ end }}", "range can't iterate");
}
