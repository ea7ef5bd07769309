//! Arguments and files that are refused.

use super::*;

#[track_caller]
fn refused(made: Result<Arc<dyn Plugin>, PluginError>) -> String {
    made.err().expect("is refused").to_string()
}

#[track_caller]
fn refused_args(args: Value, words: &[&str]) {
    let error = refused(crate::new("Roomy", Some(&args)));
    for word in words.iter().chain(&["\"Roomy\""]) {
        assert!(error.contains(word), "{word:?} is not in {error}");
    }
}

#[test]
fn every_field_is_checked_and_named() {
    refused_args(
        json!({"path": "plugin.wasm", "args": [1], "memoryLimitBytes": 1, "fuelPerCall": 0}),
        &[
            "path: Invalid value: \"plugin.wasm\": must be an absolute path",
            "args: Invalid value: [1]: must be an object",
            "memoryLimitBytes: Invalid value: 1: must be within 65536..4294967296",
            "fuelPerCall: Invalid value: 0: must be greater than 0",
        ],
    );
    refused_args(json!({}), &["path: Invalid value: \"\""]);
    refused_args(json!({"fuel": 1}), &["unknown field `fuel`"]);
    refused_args(
        json!({"path": "/no/such/plugin.wasm"}),
        &["path: Invalid value: \"/no/such/plugin.wasm\": No such file or directory"],
    );
    refused_args(
        json!({"path": "/"}),
        &["path: Invalid value: \"/\": is no file"],
    );
}

#[test]
fn what_is_no_plugin_is_refused_by_name() {
    let refused = |bytes: &[u8]| refused(plugin_with(bytes, json!({})));
    let error = refused(b"(component)");
    assert!(error.contains("is no WASM component: "), "{error}");
    let module = wat::parse_str("(module)").expect("well-formed");
    let error = refused(&module);
    assert!(error.contains("is no WASM component: "), "{error}");
    let empty = wat::parse_str("(component)").expect("well-formed");
    let error = refused(&empty);
    assert!(
        error.contains("exports no gantry:scheduler/plugin@0.1.0, but []"),
        "{error}"
    );
    let newer = component(
        &WIT.replace("scheduler@0.1.0", "scheduler@0.2.0"),
        &GUEST.replace("@0.1.0", "@0.2.0"),
    );
    let error = refused(&newer);
    assert!(
        error.contains(
            "exports gantry:scheduler/plugin@0.2.0; gantry:scheduler/plugin@0.1.0 is spoken here"
        ),
        "{error}"
    );
    let curious = component(
        &WIT.replace(
            "    import log;",
            "    import log;\n    import secrets: interface { read: func(); }",
        ),
        &GUEST.replace(
            "(memory (export",
            r#"(import "secrets" "read" (func $read)) (memory (export"#,
        ),
    );
    let error = refused(&curious);
    assert!(
        error.contains("imports what no plugin is given: [secrets]"),
        "{error}"
    );
    let idle = GUEST.replace("(i32.const 3) (; points ;)", "(i32.const 0)");
    let error = refused(&component(WIT, &idle));
    assert!(error.contains("has a say at no point"), "{error}");
}

#[test]
fn another_shape_of_the_same_interface_is_refused() {
    let wit = WIT.replace("result<list<s64>, string>", "result<list<s32>, string>");
    let error = refused(plugin_with(&component(&wit, GUEST), json!({})));
    assert!(error.contains("path: Invalid value: "), "{error}");
    let words = "its WASM component does not fit gantry:scheduler/plugin@0.1.0: ";
    assert!(error.contains(words), "{error}");
    assert!(error.contains("expected `s64` found `s32`"), "{error}");
}

#[test]
fn a_later_version_that_only_adds_is_taken() {
    let later = component(
        &WIT.replace("scheduler@0.1.0", "scheduler@0.1.7"),
        &GUEST.replace("@0.1.0", "@0.1.7"),
    );
    let plugin = plugin_with(&later, json!({})).expect("it is a plugin");
    assert_eq!(scores(&*plugin, &pod(0), &cluster(&["1"])), Some(vec![75]));
}

#[test]
fn what_the_component_refuses_at_its_start_is_told_with_the_field() {
    let guest = component(WIT, GUEST);
    let error = refused(plugin_with(&guest, json!({"args": {"colour": "green"}})));
    let words = r#"args: Invalid value: {"colour":"green"}: its WASM component failed in configure: no such argument"#;
    assert!(error.contains(words), "{error}");
    let error = refused(plugin_with(&guest, json!({"memoryLimitBytes": 1 << 20})));
    let words = "memoryLimitBytes: Invalid value: 1048576: its WASM component asked for 4194304 bytes of memory in its start";
    assert!(error.contains(words), "{error}");
    let error = refused(plugin_with(&guest, json!({"fuelPerCall": 1})));
    let words = "fuelPerCall: Invalid value: 1: its WASM component took more than 1 units of fuel";
    assert!(error.contains(words), "{error}");
}

#[test]
fn defaults_are_written_out_and_mean_the_same() {
    let given = json!({"kind": "WasmPluginArgs", "path": "/plugin.wasm"});
    assert!(crate::is_wasm(&given) && !crate::is_wasm(&json!({"path": "/plugin.wasm"})));
    let all = crate::completed("Roomy", &given).expect("valid");
    assert_eq!(
        all,
        json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "WasmPluginArgs",
            "path": "/plugin.wasm",
            "args": {},
            "memoryLimitBytes": 134_217_728,
            "fuelPerCall": 1_000_000_000,
        })
    );
    assert_eq!(crate::completed("Roomy", &all).expect("valid"), all);
}
