use super::*;

fn facts() -> Facts {
    Facts {
        rootfs: "/run/root".into(),
        namespace_dir: "/run/ns".into(),
        cgroup_path: "/kubepods/pod1/c1".into(),
        v1_controllers: vec!["memory".into()],
        swap_accounting: true,
        available_capabilities: capability::ALL & !capability::bit("SYS_RESOURCE").unwrap(),
        shm_path: "/run/shm".into(),
        resolv_conf: "/run/resolv.conf".into(),
        hostname_file: "/run/hostname".into(),
        user: User {
            uid: 5,
            gid: 6,
            groups: vec![6, 7],
            home: "/home/u".into(),
        },
        ..Default::default()
    }
}

fn config() -> ContainerConfig {
    ContainerConfig {
        command: vec!["/bin/app".into()],
        security: SecurityContext {
            namespaces: NamespaceOptions {
                pid: NamespaceMode::Container,
                ..Default::default()
            },
            ..Default::default()
        },
        ..Default::default()
    }
}

fn build(config: &ContainerConfig) -> ContainerSpec {
    let sandbox = PodSandboxConfig {
        hostname: "pod".into(),
        ..Default::default()
    };
    let mut facts = facts();
    facts.mount_sources = config
        .mounts
        .iter()
        .map(|mount| mount.host_path.clone())
        .collect();
    container_spec(&sandbox, config, &ImageFacts::default(), &facts).unwrap()
}

fn bind(destination: &str, propagation: MountPropagation) -> Mount {
    Mount {
        container_path: destination.into(),
        host_path: "/v".into(),
        propagation,
        ..Default::default()
    }
}

#[test]
fn commands_come_from_the_container_or_the_image() {
    let image = ImageFacts {
        entrypoint: vec!["e".into()],
        cmd: vec!["c".into()],
        ..Default::default()
    };
    for (command, args, expected) in [
        (vec![], vec![], vec!["e", "c"]),
        (vec![], vec!["a"], vec!["e", "a"]),
        (vec!["x"], vec![], vec!["x"]),
        (vec!["x"], vec!["a"], vec!["x", "a"]),
    ] {
        let own = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let config = ContainerConfig {
            command: own(command),
            args: own(args),
            ..config()
        };
        let spec = container_spec(&PodSandboxConfig::default(), &config, &image, &facts()).unwrap();
        assert_eq!(spec.process.args, own(expected));
    }
    let nothing = ContainerConfig {
        command: vec![],
        ..config()
    };
    let refused = container_spec(
        &PodSandboxConfig::default(),
        &nothing,
        &ImageFacts::default(),
        &facts(),
    );
    assert_eq!(refused.unwrap_err(), SpecError::NoCommand);
}

#[test]
fn the_containers_environment_wins() {
    let image = ImageFacts {
        env: vec!["PATH=/image".into(), "A=1".into(), "HOSTNAME=i".into()],
        ..Default::default()
    };
    let config = ContainerConfig {
        envs: vec![("A".into(), "2=3".into())],
        tty: true,
        ..config()
    };
    let sandbox = PodSandboxConfig {
        hostname: "pod".into(),
        ..Default::default()
    };
    let spec = container_spec(&sandbox, &config, &image, &facts()).unwrap();
    assert_eq!(
        spec.process.env,
        [
            "PATH=/image",
            "TERM=xterm",
            "HOSTNAME=i",
            "A=2=3",
            "HOME=/home/u"
        ]
    );
}

/// A pod's environment may have as many variables as fit into some megabytes.
#[test]
fn many_variables_take_no_longer_than_few() {
    let envs = (0..200_000).map(|n| (format!("V{n}"), String::new()));
    let config = ContainerConfig {
        envs: envs.chain([("V7".to_owned(), "last".to_owned())]).collect(),
        ..config()
    };
    let begun = std::time::Instant::now();
    let env = build(&config).process.env;
    assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    assert!(env.len() > 200_000);
    assert_eq!(
        env.iter()
            .filter(|entry| entry.starts_with("V7="))
            .collect::<Vec<_>>(),
        ["V7=last"]
    );
}

#[test]
fn capabilities_follow_containerd_and_the_machine() {
    let available = capability::ALL & !capability::bit("SYS_RESOURCE").unwrap();
    let default: u64 = capability::DEFAULT
        .iter()
        .map(|name| capability::bit(name).unwrap())
        .sum();
    let bit = |name| capability::bit(name).unwrap();
    for (add, drop, privileged, expected) in [
        (vec![], vec![], false, default),
        (vec![], vec![], true, available),
        (
            vec!["NET_ADMIN"],
            vec!["CHOWN"],
            false,
            default | bit("NET_ADMIN") & !bit("CHOWN"),
        ),
        (vec!["ALL"], vec![], false, available),
        (vec!["SYS_RESOURCE"], vec![], false, default),
        (
            vec!["NET_BIND_SERVICE"],
            vec!["ALL"],
            false,
            bit("NET_BIND_SERVICE"),
        ),
    ] {
        let security = SecurityContext {
            privileged,
            add_capabilities: add.into_iter().map(str::to_owned).collect(),
            drop_capabilities: drop.iter().map(|name: &&str| (*name).to_owned()).collect(),
            ..Default::default()
        };
        let mut expected = expected;
        if drop.contains(&"CHOWN") {
            expected &= !bit("CHOWN");
        }
        assert_eq!(capabilities(&security, available).unwrap(), expected);
    }
    let security = SecurityContext {
        add_capabilities: vec!["FLY".into()],
        ..Default::default()
    };
    assert_eq!(
        capabilities(&security, available),
        Err(SpecError::UnknownCapability("FLY".into()))
    );
}

#[test]
fn the_shim_takes_away_what_libcontainer_gives() {
    let spec = build(&config());
    assert_eq!(spec.oci["process"]["user"]["uid"], 0);
    assert!(spec.oci["process"].get("noNewPrivileges").is_none());
    assert!(spec.oci["linux"].get("seccomp").is_none());
    assert_eq!((spec.process.uid, spec.process.gid), (5, 6));
    assert_eq!(
        spec.process.permitted & capability::bit("SYS_ADMIN").unwrap(),
        0
    );
}

#[test]
fn cgroups_are_read_only_unless_privileged() {
    let read_only = |spec: &ContainerSpec| spec.oci["linux"]["readonlyPaths"].to_string();
    let memory = |spec: &ContainerSpec| -> Value {
        let mounts = spec.oci["mounts"].as_array().unwrap();
        // libcontainer's own mount of v1 takes every cgroup mount of the machine for a controller.
        assert!(mounts.iter().all(|mount| mount["type"] != "cgroup"));
        let at = |path: &str| mounts.iter().position(|mount| mount["destination"] == path);
        let (top, memory) = (at("/sys/fs/cgroup"), at("/sys/fs/cgroup/memory"));
        assert!(top.is_some() && top < memory);
        mounts[memory.unwrap()].clone()
    };
    let spec = build(&config());
    assert!(read_only(&spec).contains("/sys/fs/cgroup"));
    assert_eq!(
        memory(&spec)["source"],
        "/sys/fs/cgroup/memory/kubepods/pod1/c1"
    );
    assert!(
        memory(&spec)["options"]
            .as_array()
            .unwrap()
            .contains(&json!("ro"))
    );
    let mut privileged = config();
    privileged.security.privileged = true;
    let spec = build(&privileged);
    assert!(!read_only(&spec).contains("cgroup"));
    assert!(
        memory(&spec)["options"]
            .as_array()
            .unwrap()
            .contains(&json!("rw"))
    );
    assert_eq!(
        spec.device_rules,
        [DeviceRule {
            allow: true,
            kind: 'a',
            major: None,
            minor: None,
            access: "rwm".into()
        }]
    );
    assert!(!build(&config()).device_rules[0].allow);
}

#[test]
fn namespaces_follow_their_modes() {
    let types = |config: &ContainerConfig| -> Vec<String> {
        build(config).oci["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ns| {
                format!(
                    "{}={}",
                    ns["type"].as_str().unwrap(),
                    ns["path"].as_str().unwrap_or("")
                )
            })
            .collect()
    };
    assert_eq!(
        types(&config()),
        [
            "mount=",
            "network=/run/ns/net",
            "uts=/run/ns/uts",
            "ipc=/run/ns/ipc",
            "pid=",
            "cgroup="
        ]
    );
    let mut host = config();
    host.security.namespaces = NamespaceOptions {
        network: NamespaceMode::Node,
        pid: NamespaceMode::Node,
        ipc: NamespaceMode::Node,
        ..Default::default()
    };
    assert_eq!(types(&host), ["mount=", "cgroup="]);
    assert!(build(&host).shared_pid);
    let mut shared = config();
    shared.security.namespaces.pid = NamespaceMode::Pod;
    assert!(types(&shared).contains(&"pid=/run/ns/pid".to_owned()));
}

#[test]
fn mounts_are_ordered_and_keep_their_propagation() {
    let with = |mounts| build(&ContainerConfig { mounts, ..config() });
    let spec = with(vec![
        bind("/a/b/c/", MountPropagation::Private),
        bind("/a", MountPropagation::Private),
    ]);
    let all = spec.oci["mounts"].as_array().unwrap().iter();
    let own: Vec<&str> = all
        .filter_map(|mount| mount["destination"].as_str())
        .filter(|destination| destination.starts_with("/a"))
        .collect();
    assert_eq!(own, ["/a", "/a/b/c"]);
    assert_eq!(spec.oci["linux"]["rootfsPropagation"], "private");
    assert!(spec.private_mounts.is_empty());
    let spec = with(vec![
        bind("/a", MountPropagation::Private),
        bind("/b", MountPropagation::HostToContainer),
    ]);
    assert_eq!(spec.oci["linux"]["rootfsPropagation"], "slave");
    assert_eq!(spec.private_mounts, ["/a"]);
    let spec = with(vec![bind("/b", MountPropagation::Bidirectional)]);
    assert_eq!(spec.oci["linux"]["rootfsPropagation"], "shared");
}

#[test]
fn a_volume_above_the_pods_files_does_not_hide_them() {
    let config = ContainerConfig {
        mounts: vec![
            bind("/data/b/c", MountPropagation::Private),
            bind("/etc", MountPropagation::Private),
        ],
        ..config()
    };
    let facts = Facts {
        mount_sources: vec!["/v".into(), "/v".into()],
        image_volumes: vec![
            ("/data/b/c/d/".into(), "/i".into()),
            ("/data".into(), "/i".into()),
        ],
        ..facts()
    };
    let sandbox = PodSandboxConfig::default();
    let spec = container_spec(&sandbox, &config, &ImageFacts::default(), &facts).unwrap();
    let mounts = spec.oci["mounts"].as_array().unwrap();
    let binds: Vec<_> = mounts
        .iter()
        .filter(|mount| mount["type"] == "bind" && mount["options"][0] == "rbind")
        .map(|mount| mount["destination"].as_str().unwrap())
        .collect();
    assert_eq!(
        binds,
        [
            "/etc",
            "/data",
            "/dev/shm",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/data/b/c",
            "/data/b/c/d"
        ]
    );
}

#[test]
fn what_is_wanted_at_dev_is_no_mount_of_the_specs() {
    let spec = build(&ContainerConfig {
        mounts: vec![
            bind("/dev/", MountPropagation::HostToContainer),
            bind("/dev/shm-x", MountPropagation::Private),
            bind("/dev/shm/a", MountPropagation::Private),
            bind("/device", MountPropagation::Private),
        ],
        ..config()
    });
    let at_dev: Vec<_> = spec.oci["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|m| m["destination"] == "/dev")
        .collect();
    assert_eq!(at_dev.len(), 1);
    assert_eq!(at_dev[0]["type"], "tmpfs");
    let dev = spec.dev_mount.unwrap();
    assert_eq!(dev.propagation, Propagation::Slave);
    assert!(!dev.read_only);
    assert_eq!(
        dev.below,
        ["/dev/mqueue", "/dev/pts", "/dev/shm", "/dev/shm-x"]
    );
    assert!(build(&config()).dev_mount.is_none());
}

#[test]
fn a_mount_of_ones_own_replaces_the_sandboxs() {
    let mut own = bind("/dev/shm", MountPropagation::Private);
    own.host_path = "/elsewhere".into();
    let spec = build(&ContainerConfig {
        mounts: vec![own],
        ..config()
    });
    let shm: Vec<_> = spec.oci["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|m| m["destination"] == "/dev/shm")
        .collect();
    assert_eq!(shm.len(), 1);
    assert_eq!(shm[0]["source"], "/elsewhere");
}

#[test]
fn resources_leave_out_what_is_not_limited() {
    let value = resources(
        &Resources {
            cpu_shares: Some(0),
            memory_limit_bytes: Some(-1),
            ..Default::default()
        },
        &facts(),
    );
    assert_eq!(value, json!({ "cpu": {} }));
    let value = resources(
        &Resources {
            cpu_shares: Some(2),
            cpu_quota_us: Some(50_000),
            cpu_period_us: Some(100_000),
            memory_limit_bytes: Some(64 << 20),
            memory_swap_limit_bytes: Some(64 << 20),
            pids_limit: Some(10),
            cpuset_cpus: "1".to_owned(),
            ..Default::default()
        },
        &facts(),
    );
    let cpu = json!({ "shares": 2, "quota": 50_000, "period": 100_000, "cpus": "1" });
    assert_eq!(value["cpu"], cpu);
    assert_eq!(
        value["memory"],
        json!({ "limit": 64 << 20, "swap": 64 << 20 })
    );
    assert_eq!(value["pids"]["limit"], 10);
}

#[test]
fn a_device_that_is_wanted_elsewhere_than_in_dev_is_mounted() {
    let node = |path: &str| DeviceNode {
        container_path: path.to_owned(),
        host_path: PathBuf::from("/dev/loop7"),
        kind: 'b',
        major: 7,
        minor: 7,
        mode: 0o660,
        uid: 0,
        gid: 6,
        access: "mrw".to_owned(),
    };
    let facts = Facts {
        devices: vec![
            node("/dev/xvda"),
            node("/mnt/volume1"),
            node("/dev-of-mine"),
        ],
        ..facts()
    };
    let sandbox = PodSandboxConfig::default();
    let spec = container_spec(&sandbox, &config(), &ImageFacts::default(), &facts).unwrap();
    let made = spec.oci["linux"]["devices"].as_array().unwrap();
    let made: Vec<_> = made
        .iter()
        .map(|device| device["path"].as_str().unwrap())
        .collect();
    assert_eq!(made, ["/dev/xvda"]);
    let mounts = spec.oci["mounts"].as_array().unwrap();
    let of_device = mounts
        .iter()
        .filter(|mount| mount["source"] == "/dev/loop7");
    let places: Vec<_> = of_device
        .map(|mount| mount["destination"].as_str().unwrap())
        .collect();
    assert_eq!(places, ["/mnt/volume1", "/dev-of-mine"]);
    let rules = spec
        .device_rules
        .iter()
        .filter(|rule| rule.major == Some(7));
    assert_eq!(rules.count(), 3, "all may be used");
}

/// libcontainer mounts the machine's device of the same name, whichever was asked for.
#[test]
fn in_a_user_namespace_a_device_of_another_name_is_mounted() {
    let node = |path: &str, host: &str| DeviceNode {
        container_path: path.to_owned(),
        host_path: host.into(),
        kind: 'c',
        major: 10,
        minor: 1,
        mode: 0o660,
        uid: 0,
        gid: 0,
        access: "rw".to_owned(),
    };
    let facts = Facts {
        devices: vec![
            node("/dev/same", "/dev/same"),
            node("/dev/gpu0", "/dev/gpu7"),
        ],
        ..facts()
    };
    let mut config = config();
    config.security.namespaces.user = Some(UserNamespace::default());
    let sandbox = PodSandboxConfig::default();
    let spec = container_spec(&sandbox, &config, &ImageFacts::default(), &facts).unwrap();
    let made = &spec.oci["linux"]["devices"];
    assert_eq!(made.as_array().unwrap().len(), 1);
    assert_eq!(made[0]["path"], "/dev/same");
    let mounts = spec.oci["mounts"].as_array().unwrap();
    let mounted = mounts.iter().find(|m| m["destination"] == "/dev/gpu0");
    assert_eq!(mounted.unwrap()["source"], "/dev/gpu7");
}

#[test]
fn what_cdi_devices_bring_is_added_and_counts_first() {
    let hook = ::cdi::Hook {
        hook_name: ::cdi::HookName::CreateContainer,
        path: "/h".to_owned(),
        args: Vec::new(),
        env: Vec::new(),
        timeout: Some(3),
    };
    let seen = DeviceNode {
        container_path: "/dev/seen".to_owned(),
        host_path: "/dev/seen".into(),
        kind: 'c',
        major: 10,
        minor: 1,
        mode: 0o660,
        uid: 0,
        gid: 0,
        access: String::new(),
    };
    let facts = Facts {
        devices: vec![seen],
        cdi: cdi::Injected {
            env: vec!["OWN=theirs".to_owned(), "GPU=0".to_owned()],
            mounts: vec![cdi::CdiMount {
                destination: "/dev/shm".to_owned(),
                source: "/h".into(),
                kind: "bind".to_owned(),
                options: vec!["bind".to_owned()],
            }],
            hooks: vec![hook],
            groups: vec![7, 44],
        },
        ..facts()
    };
    let config = ContainerConfig {
        envs: vec![("OWN".into(), "own".into())],
        ..config()
    };
    let sandbox = PodSandboxConfig::default();
    let spec = container_spec(&sandbox, &config, &ImageFacts::default(), &facts).unwrap();
    let env = &spec.process.env;
    assert!(env.contains(&"OWN=theirs".to_owned()) && env.contains(&"GPU=0".to_owned()));
    assert!(!env.contains(&"OWN=own".to_owned()));
    assert_eq!(spec.process.additional_gids, [6, 7, 44]);
    assert_eq!(
        spec.oci["hooks"],
        json!({"createContainer": [{"path": "/h", "timeout": 3}]})
    );
    let mounts = spec.oci["mounts"].as_array().unwrap();
    let shm: Vec<_> = mounts
        .iter()
        .filter(|m| m["destination"] == "/dev/shm")
        .collect();
    assert_eq!(shm.len(), 1);
    assert_eq!(shm[0]["source"], "/h");
    assert_eq!(spec.oci["linux"]["devices"][0]["path"], "/dev/seen");
    let allowed = spec.device_rules.iter().any(|rule| rule.major == Some(10));
    assert!(!allowed, "it is seen, and no more");
    assert!(build(&config).oci.get("hooks").is_none());
}
