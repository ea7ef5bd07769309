use super::*;

fn planned(edits: &str) -> Result<Plan, String> {
    let text = format!(
        r#"{{"cdiVersion": "1.1.0", "kind": "v/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#
    );
    let spec = cdi::parse(&text).unwrap();
    let part = Part {
        device: "v/c=d",
        path: Path::new("/etc/cdi/v.json"),
        edits: &spec.devices[0].container_edits,
    };
    plan(&[part]).map_err(|error| error.to_string())
}

#[test]
fn what_this_runtime_does_not_do_is_refused_with_the_device() {
    for (edits, words) in [
        (
            r#"{"intelRdt": {"closID": "x"}}"#,
            "intelRdt is not supported by this runtime",
        ),
        (
            r#"{"netDevices": [{"hostInterfaceName": "eth9", "name": "n"}]}"#,
            "netDevices (eth9) is not supported",
        ),
        (
            r#"{"hooks": [{"hookName": "startContainer", "path": "/h"}]}"#,
            "startContainer hooks are not supported",
        ),
        (
            r#"{"hooks": [{"hookName": "poststop", "path": "/h"}]}"#,
            "poststop hooks are not supported",
        ),
        (
            r#"{"hooks": [{"hookName": "prestart", "path": "h"}]}"#,
            "the path \"h\" of a hook is not absolute",
        ),
        (
            r#"{"mounts": [{"hostPath": "/h", "containerPath": "/dev/", "options": ["bind"]}]}"#,
            "a mount at \"/dev/\" is not supported",
        ),
        (
            r#"{"mounts": [{"hostPath": "/h", "containerPath": "c", "options": ["bind"]}]}"#,
            "a mount at \"c\" is not supported",
        ),
        (
            r#"{"mounts": [{"hostPath": "/h", "containerPath": "/a/../../c", "options": ["bind"]}]}"#,
            "a mount at \"/a/../../c\" is not supported",
        ),
        (
            r#"{"mounts": [{"hostPath": "/h", "containerPath": "/c", "options": ["bind", "rshared"]}]}"#,
            "the mount at \"/c\" has option \"rshared\"",
        ),
        (
            r#"{"mounts": [{"hostPath": "/h", "containerPath": "/c"}]}"#,
            "the mount at \"/c\" is no bind mount",
        ),
        (
            r#"{"deviceNodes": [{"path": "/dev"}]}"#,
            "the device node \"/dev\" is at no place",
        ),
    ] {
        let told = planned(edits).unwrap_err();
        assert!(
            told.starts_with("CDI device v/c=d: ") && told.contains(words),
            "{told}"
        );
    }
    let hooks = vec![r#"{"hookName": "prestart", "path": "/h"}"#; MOST_HOOKS + 1].join(",");
    let told = planned(&format!(r#"{{"hooks": [{hooks}]}}"#)).unwrap_err();
    assert!(told.contains("more than 64 hooks"), "{told}");
}

#[test]
fn hooks_have_a_time() {
    let plan = planned(
        r#"{"hooks": [
            {"hookName": "createContainer", "path": "/a", "args": ["a", "b"], "env": ["X=1"]},
            {"hookName": "createContainer", "path": "/b", "timeout": 5},
            {"hookName": "poststart", "path": "/c", "timeout": 5000}
        ]}"#,
    );
    let hooks = plan.unwrap().rest.hooks().unwrap();
    assert_eq!(
        hooks,
        json!({
            "createContainer": [
                {"path": "/a", "args": ["a", "b"], "env": ["X=1"], "timeout": 30},
                {"path": "/b", "timeout": 5},
            ],
            "poststart": [{"path": "/c", "timeout": 60}],
        })
    );
    assert_eq!(Injected::default().hooks(), None);
}

#[test]
fn a_mount_takes_the_place_of_another_and_covers_none() {
    let plan = planned(
        r#"{"mounts": [
            {"hostPath": "/h/lib", "containerPath": "/usr/lib", "options": ["ro", "rbind", "rprivate"]},
            {"hostPath": "/h/etc", "containerPath": "/etc/v/", "type": "bind"},
            {"hostPath": "tmpfs", "containerPath": "/scratch", "type": "tmpfs", "options": ["size=1m"]}
        ]}"#,
    );
    let injected = Injected {
        mounts: plan.unwrap().mounts,
        ..Injected::default()
    };
    let at = |path: &str| json!({"destination": path, "type": "bind", "source": "/own"});
    let mut spec = ContainerSpecMounts {
        mounts: vec![at("/proc"), at("/etc/v"), at("/usr/lib/own")],
        private: vec!["/etc/v".to_owned()],
        propagation: "slave",
    };
    injected.add_mounts(&mut spec);
    let all: Vec<String> = spec
        .mounts
        .iter()
        .map(|m| {
            format!(
                "{} {} {} {}",
                m["destination"].as_str().unwrap(),
                m["type"].as_str().unwrap(),
                m["source"].as_str().unwrap(),
                m["options"]
            )
        })
        .collect();
    assert_eq!(
        all,
        [
            "/proc bind /own null",
            "/usr/lib bind /h/lib [\"ro\",\"rbind\"]",
            "/usr/lib/own bind /own null",
            "/etc/v bind /h/etc [\"bind\"]",
            "/scratch tmpfs tmpfs [\"size=1m\"]",
        ]
    );
    assert_eq!(spec.private, ["/usr/lib", "/etc/v", "/scratch"]);
}

#[test]
fn a_node_is_what_its_file_and_the_machine_say() {
    let host = HostNode {
        kind: 'c',
        major: 1,
        minor: 3,
        mode: 0o660,
    };
    let none = || Err("no such file".to_owned());
    let check = |node: &str, host: Result<HostNode, String>, expect: Result<&str, &str>| {
        let plan = planned(&format!(r#"{{"deviceNodes": [{node}]}}"#)).unwrap();
        let made = device_node(&plan.nodes[0].1, host, (7, 8));
        let made = made.map(|n| {
            format!(
                "{} {} {}{}:{} {:o} {}:{} {}",
                n.container_path,
                n.host_path.display(),
                n.kind,
                n.major,
                n.minor,
                n.mode,
                n.uid,
                n.gid,
                n.access
            )
        });
        match (made, expect) {
            (Ok(made), Ok(expect)) => assert_eq!(made, expect, "{node}"),
            (Err(told), Err(words)) => assert!(told.to_string().contains(words), "{told}"),
            (made, _) => panic!("{node}: {made:?}"),
        }
    };
    check(
        r#"{"path": "/dev/a"}"#,
        Ok(host),
        Ok("/dev/a /dev/a c1:3 660 7:8 rwm"),
    );
    check(
        r#"{"path": "/dev/a", "hostPath": "/dev/x", "type": "c", "permissions": "r", "fileMode": 438, "uid": 0, "gid": 0}"#,
        Ok(host),
        Ok("/dev/a /dev/x c1:3 666 0:0 r"),
    );
    check(
        r#"{"path": "/dev/a", "permissions": "none"}"#,
        Ok(host),
        Ok("/dev/a /dev/a c1:3 660 7:8 "),
    );
    // Whole in itself, it needs no node of the machine.
    check(
        r#"{"path": "/dev/a", "type": "u", "major": 5, "minor": 6}"#,
        none(),
        Ok("/dev/a /dev/a c5:6 666 7:8 rwm"),
    );
    check(
        r#"{"path": "/dev/a", "type": "p"}"#,
        none(),
        Ok("/dev/a /dev/a p0:0 666 7:8 rwm"),
    );
    check(
        r#"{"path": "/dev/a", "type": "c"}"#,
        none(),
        Err("failed to stat CDI host device \"/dev/a\": no such file"),
    );
    check(
        r#"{"path": "/dev/a", "type": "b"}"#,
        Ok(host),
        Err("host type mismatch (b, c)"),
    );
    // Elsewhere the machine's own is mounted, so that must be it.
    check(
        r#"{"path": "/mnt/a", "hostPath": "/dev/x"}"#,
        Ok(host),
        Ok("/mnt/a /dev/x c1:3 660 7:8 rwm"),
    );
    check(
        r#"{"path": "/mnt/a", "type": "c", "major": 5}"#,
        Ok(host),
        Err("lies outside of /dev"),
    );
    check(
        r#"{"path": "/mnt/a", "type": "c", "major": 5}"#,
        none(),
        Err("lies outside of /dev"),
    );
}
