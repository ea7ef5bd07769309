use super::*;
use crate::edits::HookName;

/// A file with one of everything.
const FULL: &str = r#"
cdiVersion: "1.1.0"
kind: vendor.com/gpu
annotations: {note.example.com/x: "1"}
containerEdits:
  env: [ALL=1]
devices:
- name: 0
  containerEdits:
    env: [GPU=0, EMPTY=]
    deviceNodes:
    - path: /dev/gpu0
      hostPath: /dev/vendor/gpu0
      type: c
      major: 195
      minor: 0
      fileMode: 0660
      permissions: rw
      uid: 5
      gid: 6
    - {path: /dev/gpuctl, permissions: none}
    netDevices: [{hostInterfaceName: eth9, name: net0}]
    hooks:
    - hookName: createContainer
      path: /usr/bin/vendor
      args: [vendor, hook]
      env: [A=b]
      timeout: 5
    mounts:
    - {hostPath: /lib/v.so, containerPath: /usr/lib/v.so, options: [ro, bind], type: bind}
    intelRdt: {closID: c, l3CacheSchema: "L3:0=f", enableMonitoring: true}
    additionalGids: [44]
- name: GPU-1
  annotations:
  containerEdits: {env: [GPU=1], mounts: null}
"#;

#[test]
fn every_field_is_read() {
    let spec = parse(FULL).unwrap();
    assert_eq!(spec.container_edits.env, ["ALL=1"]);
    let [zero, one] = spec.devices.as_slice() else {
        panic!("{spec:?}");
    };
    assert_eq!((zero.name.as_str(), one.name.as_str()), ("0", "GPU-1"));
    let edits = &zero.container_edits;
    assert_eq!(edits.env, ["GPU=0", "EMPTY="]);
    let node = &edits.device_nodes[0];
    assert_eq!(node.path, "/dev/gpu0");
    assert_eq!(node.host_path, "/dev/vendor/gpu0");
    assert_eq!((node.kind.as_str(), node.major, node.minor), ("c", 195, 0));
    assert_eq!(
        (node.file_mode, node.uid, node.gid),
        (Some(0o660), Some(5), Some(6))
    );
    assert_eq!(node.permissions, "rw");
    assert_eq!(edits.device_nodes[1].permissions, "none");
    assert_eq!(edits.net_devices[0].name, "net0");
    let hook = &edits.hooks[0];
    assert_eq!(hook.hook_name, HookName::CreateContainer);
    assert_eq!((hook.args.len(), hook.timeout), (2, Some(5)));
    assert_eq!(edits.mounts[0].container_path, "/usr/lib/v.so");
    assert_eq!(edits.mounts[0].options, ["ro", "bind"]);
    assert_eq!(edits.intel_rdt.as_ref().unwrap().clos_id, "c");
    assert_eq!(edits.additional_gids, [44]);
    assert!(one.container_edits.mounts.is_empty());
}

#[test]
fn json_is_read_whatever_its_blanks() {
    let text = "\n{\n\t\"cdiVersion\": \"0.3.0\",\n\t\"kind\": \"v/c\",\n\t\"devices\": [{\"name\": \"d\", \"containerEdits\": {\"env\": [\"A=1\"]}}]\n}";
    assert_eq!(parse(text).unwrap().devices[0].name, "d");
}

/// The device `d` of `v/c` with these edits, in a file of this version.
fn with(version: &str, edits: &str) -> String {
    format!(
        r#"{{"cdiVersion": "{version}", "kind": "v/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#
    )
}

#[test]
fn a_file_names_the_version_that_it_uses() {
    let check = |edits: &str, least: &str, before: &str| {
        parse(&with(least, edits)).unwrap();
        parse(&with(&format!("v{least}"), edits)).unwrap();
        let told = parse(&with(before, edits)).unwrap_err();
        assert!(matches!(told, SpecError::TooOld(v) if v == least), "{told}");
    };
    let mount = |more: &str| {
        format!(r#"{{"mounts": [{{"hostPath": "/h", "containerPath": "/c"{more}}}]}}"#)
    };
    check(&mount(r#", "type": "bind""#), "0.4.0", "0.3.0");
    parse(&with("0.3.0", &mount(""))).unwrap();
    check(
        r#"{"deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/b"}]}"#,
        "0.5.0",
        "0.4.0",
    );
    check(r#"{"additionalGids": [1]}"#, "0.7.0", "0.6.0");
    check(r#"{"intelRdt": {"closID": "x"}}"#, "0.7.0", "0.6.0");
    check(
        r#"{"intelRdt": {"closID": "x", "schemata": []}}"#,
        "1.1.0",
        "1.0.0",
    );
    check(
        r#"{"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}"#,
        "1.1.0",
        "1.0.0",
    );
    let env = r#"{"env": ["A=1"]}"#;
    let digit = |version: &str| with(version, env).replace(r#""d""#, r#""0d""#);
    assert!(parse(&digit("0.4.0")).is_err() && parse(&digit("0.5.0")).is_ok());
    let dotted = |version: &str| with(version, env).replace("v/c", "v/c.x");
    assert!(parse(&dotted("0.5.0")).is_err() && parse(&dotted("0.6.0")).is_ok());
    for (version, expect) in [
        ("0.1.0", false),
        ("0.8.0", true),
        ("1.0.0", true),
        ("2.0.0", false),
        ("", false),
    ] {
        assert_eq!(parse(&with(version, env)).is_ok(), expect, "{version}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let good = with("1.1.0", r#"{"env": ["A=1"]}"#);
    parse(&good).unwrap();
    let check = |text: &str, words: &str| {
        let told = parse(text).unwrap_err().to_string();
        assert!(told.contains(words), "{text}: {told}");
    };
    check("", "no Spec data");
    check("null", "no Spec data");
    check("[]", "failed to unmarshal");
    check(&good.replace("\"kind\"", "\"sort\""), "failed to unmarshal");
    check(&good.replace("v/c", "c"), "kind \"c\"");
    check(&good.replace("v/c", "v/-"), "kind \"v/-\"");
    check(&good.replace("\"d\"", "\"\""), "it is empty");
    check(
        r#"{"cdiVersion": "1.0.0", "kind": "v/c", "devices": []}"#,
        "no devices",
    );
    let one = r#"{"name": "d", "containerEdits": {"env": ["A=1"]}}"#;
    check(
        &format!(r#"{{"cdiVersion": "1.0.0", "kind": "v/c", "devices": [{one}, {one}]}}"#),
        "multiple device \"d\"",
    );
    for (edits, words) in [
        ("{}", "empty device edits"),
        (r#"{"env": ["A"]}"#, "invalid environment variable \"A\""),
        (r#"{"env": ["=a"]}"#, "invalid environment variable \"=a\""),
        (r#"{"deviceNodes": [null]}"#, "failed to unmarshal"),
        (r#"{"deviceNodes": [{"path": ""}]}"#, "(empty) device path"),
        (
            r#"{"deviceNodes": [{"path": "/d", "type": "x"}]}"#,
            "invalid type \"x\"",
        ),
        (
            r#"{"deviceNodes": [{"path": "/d", "major": -1}]}"#,
            "invalid device number -1:0",
        ),
        (
            r#"{"deviceNodes": [{"path": "/d", "permissions": "rx"}]}"#,
            "invalid permissions \"rx\"",
        ),
        (
            r#"{"hooks": [{"hookName": "later", "path": "/h"}]}"#,
            "failed to unmarshal",
        ),
        (
            r#"{"hooks": [{"hookName": "poststop", "path": ""}]}"#,
            "hook \"poststop\" with empty path",
        ),
        (
            r#"{"hooks": [{"hookName": "poststop", "path": "/h", "timeout": 0}]}"#,
            "its timeout of 0 s",
        ),
        (
            r#"{"mounts": [{"hostPath": "", "containerPath": "/c"}]}"#,
            "empty host path",
        ),
        (
            r#"{"mounts": [{"hostPath": "/h", "containerPath": ""}]}"#,
            "empty container path",
        ),
        (
            r#"{"netDevices": [{"hostInterfaceName": "a", "name": ""}]}"#,
            "an empty name",
        ),
        (
            r#"{"netDevices": [{"hostInterfaceName": "a", "name": "x"}, {"hostInterfaceName": "a", "name": "y"}]}"#,
            "comes twice",
        ),
        (r#"{"intelRdt": {"closID": "a/b"}}"#, "invalid ClosID"),
    ] {
        check(&with("1.1.0", edits), words);
    }
    let annotated = |key: &str| {
        good.replace(
            "\"devices\"",
            &format!(r#""annotations": {{"{key}": "x"}}, "devices""#),
        )
    };
    parse(&annotated("a.b/c")).unwrap();
    check(&annotated("a b"), "no qualified name");
    check(&annotated(""), "no qualified name");
}

/// What a file can make of a few lines is bounded.
#[test]
fn a_file_that_grows_when_it_is_read_is_refused() {
    let with_aliases = |count: usize| {
        let devices: Vec<String> = (0..count)
            .map(|n| format!("- {{name: d{n}, containerEdits: *e}}"))
            .collect();
        let env = vec!["A=1"; 100].join(",");
        format!(
            "cdiVersion: 0.5.0\nkind: v/c\ncontainerEdits: &e {{env: [{env}]}}\ndevices:\n{}\n",
            devices.join("\n")
        )
    };
    assert_eq!(parse(&with_aliases(3)).unwrap().devices.len(), 3);
    assert!(parse(&with_aliases(20_000)).is_err());
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(parse(&deep).is_err());
    assert!(parse(&format!("{{\"kind\": {deep}}}")).is_err());
}
