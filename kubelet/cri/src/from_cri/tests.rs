use std::path::PathBuf;

use cri_spec::v1;
use runtime::{ImageAuth, MountPropagation, NamespaceMode, Origin, SecurityProfile};

use super::*;

fn sandbox_request() -> v1::RunPodSandboxRequest {
    v1::RunPodSandboxRequest {
        config: Some(v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "pod".into(),
                uid: "uid".into(),
                namespace: "ns".into(),
                attempt: 1,
            }),
            log_directory: "/var/log/pods/x".into(),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext::default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        runtime_handler: String::new(),
    }
}

/// `expect`: what the refusal says; empty: it is none.
fn check_sandbox(change: impl Fn(&mut v1::PodSandboxConfig), expect: &str) {
    let mut request = sandbox_request();
    change(request.config.as_mut().unwrap());
    let said = sandbox_config(
        &request,
        NodeFacts {
            selinux: true,
            apparmor: true,
        },
    );
    let said = said
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert_eq!(said, expect);
}

fn security(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap()
}

#[test]
fn a_sandbox_is_what_was_asked_for() {
    let mut request = sandbox_request();
    let config = request.config.as_mut().unwrap();
    config.port_mappings.push(v1::PortMapping {
        protocol: v1::Protocol::Udp.into(),
        container_port: 53,
        host_port: 5353,
        host_ip: "127.0.0.1".into(),
    });
    security(config).namespace_options = Some(v1::NamespaceOption {
        network: v1::NamespaceMode::Node.into(),
        pid: v1::NamespaceMode::Container.into(),
        userns_options: Some(v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            uids: vec![v1::IdMapping {
                host_id: 65536,
                container_id: 0,
                length: 65536,
            }],
            gids: vec![v1::IdMapping::default()],
        }),
        ..Default::default()
    });
    let config = sandbox_config(&request, NodeFacts::default()).unwrap();
    assert_eq!(config.origin, Origin::Cri);
    assert_eq!(config.metadata.attempt, 1);
    assert_eq!(config.cgroup_parent, "/k8s.io");
    assert_eq!(config.port_mappings[0].protocol, runtime::Protocol::Udp);
    assert_eq!(config.port_mappings[0].host_port, 5353);
    assert_eq!(config.namespaces.network, NamespaceMode::Node);
    assert_eq!(config.namespaces.pid, NamespaceMode::Container);
    assert_eq!(config.namespaces.user.unwrap().uids[0].host_id, 65536);
}

#[test]
fn a_sandbox_is_refused_by_the_name_of_the_field() {
    check_sandbox(|_| {}, "");
    check_sandbox(|c| c.metadata = None, "config.metadata is required");
    check_sandbox(
        |c| c.metadata.as_mut().unwrap().uid.clear(),
        "config.metadata.uid is required",
    );
    check_sandbox(
        |c| c.metadata.as_mut().unwrap().uid = "../x".into(),
        "invalid config.metadata.uid: \"../x\": must be a plain name of at most 200 bytes",
    );
    check_sandbox(
        |c| c.log_directory = "logs".into(),
        "invalid config.log_directory: \"logs\": must be an absolute path",
    );
    check_sandbox(
        |c| c.windows = Some(Default::default()),
        "config.windows is not supported by this runtime: this is Linux",
    );
    check_sandbox(
        |c| c.linux.as_mut().unwrap().cgroup_parent = "system.slice".into(),
        "invalid linux.cgroup_parent: \"system.slice\": a systemd slice, and the cgroup driver is cgroupfs",
    );
    check_sandbox(
        |c| {
            security(c).selinux_options = Some(v1::SeLinuxOption {
                level: "s0".into(),
                ..Default::default()
            });
        },
        "linux.security_context.selinux_options is not supported by this runtime: it sets no SELinux labels yet",
    );
    check_sandbox(
        |c| security(c).selinux_options = Some(Default::default()),
        "",
    );
    check_sandbox(
        |c| security(c).supplemental_groups = vec![-1],
        "invalid security_context.supplemental_groups: \"-1\": must be from 0 to 2147483647",
    );
    check_sandbox(
        |c| {
            c.port_mappings.push(v1::PortMapping {
                host_port: 65536,
                ..Default::default()
            });
        },
        "invalid port_mappings.host_port: \"65536\": must be from 0 to 65535",
    );
    let with_namespaces = |options: v1::NamespaceOption| {
        move |c: &mut v1::PodSandboxConfig| security(c).namespace_options = Some(options.clone())
    };
    check_sandbox(
        with_namespaces(v1::NamespaceOption {
            network: v1::NamespaceMode::Target.into(),
            ..Default::default()
        }),
        "invalid namespace_options.network: \"Target\": must be POD or NODE",
    );
    check_sandbox(
        with_namespaces(v1::NamespaceOption {
            pid: 9,
            ..Default::default()
        }),
        "invalid namespace_options.pid: \"9\": no such namespace mode",
    );
    check_sandbox(
        with_namespaces(v1::NamespaceOption {
            userns_options: Some(v1::UserNamespace::default()),
            ..Default::default()
        }),
        "namespace_options.userns_options.uids and gids is required",
    );
}

fn container() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: "main".into(),
            attempt: 0,
        }),
        image: Some(v1::ImageSpec {
            image: "busybox".into(),
            ..Default::default()
        }),
        log_path: "main/0.log".into(),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources::default()),
            security_context: Some(v1::LinuxContainerSecurityContext {
                capabilities: Some(v1::Capability::default()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

fn check_container(change: impl Fn(&mut v1::ContainerConfig), expect: &str) {
    let mut config = container();
    change(&mut config);
    let said = container_config(
        Some(&config),
        NodeFacts {
            selinux: true,
            apparmor: true,
        },
    );
    let said = said
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert_eq!(said, expect);
}

fn of_container(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap()
}

fn of_resources(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerResources {
    config.linux.as_mut().unwrap().resources.as_mut().unwrap()
}

#[test]
fn a_container_is_what_was_asked_for() {
    let mut config = container();
    config.envs.push(v1::KeyValue {
        key: "A".into(),
        value: b"b=c".to_vec(),
    });
    config.stop_signal = v1::Signal::Sigrtminplus3.into();
    config.mounts.push(v1::Mount {
        container_path: "/data".into(),
        host_path: "/srv".into(),
        readonly: true,
        recursive_read_only: true,
        ..Default::default()
    });
    config.mounts.push(v1::Mount {
        container_path: "/image".into(),
        readonly: true,
        image: Some(v1::ImageSpec {
            image: "sha256:1".into(),
            ..Default::default()
        }),
        image_sub_path: "etc".into(),
        propagation: v1::MountPropagation::PropagationBidirectional.into(),
        ..Default::default()
    });
    config.devices.push(v1::Device {
        host_path: "/dev/fuse".into(),
        permissions: "rw".into(),
        ..Default::default()
    });
    of_resources(&mut config).cpu_quota = -1;
    of_resources(&mut config).oom_score_adj = -997;
    let wanted = of_container(&mut config);
    wanted.run_as_user = Some(v1::Int64Value { value: 7 });
    wanted.supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict.into();
    wanted.seccomp = Some(v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::Localhost.into(),
        localhost_ref: "localhost//p.json".into(),
    });
    let config = container_config(Some(&config), NodeFacts::default()).unwrap();
    assert_eq!(config.envs, [("A".to_owned(), "b=c".to_owned())]);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGRTMIN+3"));
    assert_eq!(config.user_specified_image, "busybox");
    assert!(config.mounts[0].recursive_read_only && !config.mounts[0].idmap);
    assert_eq!(config.mounts[1].image.as_deref(), Some("sha256:1"));
    assert_eq!(
        config.mounts[1].propagation,
        MountPropagation::Bidirectional
    );
    assert_eq!(config.devices[0].container_path, "/dev/fuse");
    assert_eq!(config.resources.cpu_quota_us, Some(-1));
    assert_eq!(config.resources.memory_limit_bytes, None);
    assert_eq!(config.resources.oom_score_adj, -997);
    assert_eq!(config.security.run_as_user, Some(7));
    assert!(!config.security.merge_image_groups);
    assert_eq!(
        config.security.seccomp,
        SecurityProfile::Localhost(PathBuf::from("/p.json"))
    );
    // A node without AppArmor has no default profile.
    assert_eq!(config.security.apparmor, SecurityProfile::Unconfined);
    let node = NodeFacts {
        apparmor: true,
        ..NodeFacts::default()
    };
    let config = container_config(Some(&container()), node).unwrap();
    assert_eq!(config.security.apparmor, SecurityProfile::RuntimeDefault);
}

#[test]
fn cdi_devices_go_to_the_runtime_by_name() {
    let mut wanted = container();
    wanted.cdi_devices = ["v/c=a", "v/c=b"]
        .map(|name| v1::CdiDevice { name: name.into() })
        .to_vec();
    let config = container_config(Some(&wanted), NodeFacts::default()).unwrap();
    assert_eq!(config.cdi_devices, ["v/c=a", "v/c=b"]);
}

#[test]
fn a_container_is_refused_by_the_name_of_the_field() {
    check_container(|_| {}, "");
    check_container(|c| c.image = None, "config.image.image is required");
    check_container(
        |c| c.log_path = "../x".into(),
        "invalid config.log_path: \"../x\": must be relative to the sandbox's log_directory, without '..'",
    );
    check_container(
        |c| c.cdi_devices.push(v1::CdiDevice::default()),
        "invalid config.CDI_devices.name: \"\": must be vendor/class=device",
    );
    check_container(
        |c| of_resources(c).cpuset_cpus = "0-1\n2".into(),
        "invalid linux.resources.cpuset_cpus: \"0-1\\n2\": must be a list of numbers and ranges (0-3,8)",
    );
    for list in ["0-", "-1", "3-1", ",", "0,", "4294967296"] {
        check_container(
            |c| of_resources(c).cpuset_mems = list.into(),
            &format!(
                "invalid linux.resources.cpuset_mems: {list:?}: must be a list of numbers and ranges (0-3,8)"
            ),
        );
    }
    check_container(|c| of_resources(c).cpuset_cpus = "0-1,3".into(), "");
    check_container(
        |c| of_resources(c).cpu_shares = -2,
        "invalid linux.resources.cpu_shares: \"-2\": must not be negative",
    );
    check_container(
        |c| {
            let capabilities = of_container(c).capabilities.as_mut().unwrap();
            capabilities.add_ambient_capabilities.push("CHOWN".into());
        },
        "linux.security_context.capabilities.add_ambient_capabilities is not supported by this runtime: it gives no ambient capabilities",
    );
    check_container(
        |c| of_container(c).run_as_group = Some(v1::Int64Value { value: 5 }),
        "invalid linux.security_context.run_as_group: \"5\": run_as_group is set without run_as_user or run_as_username",
    );
    let with_mount = |mount: v1::Mount| {
        move |c: &mut v1::ContainerConfig| {
            c.mounts.push(v1::Mount {
                container_path: "/c".into(),
                host_path: "/h".into(),
                ..mount.clone()
            });
        }
    };
    check_container(with_mount(v1::Mount::default()), "");
    check_container(
        with_mount(v1::Mount {
            mount_options: vec!["noexec".into()],
            ..Default::default()
        }),
        "config.mounts.mount_options is not supported by this runtime: Status says so in features.mount_options",
    );
    check_container(
        with_mount(v1::Mount {
            selinux_relabel: true,
            ..Default::default()
        }),
        "config.mounts.selinux_relabel is not supported by this runtime: it sets no SELinux labels yet",
    );
    check_container(
        with_mount(v1::Mount {
            recursive_read_only: true,
            ..Default::default()
        }),
        "invalid config.mounts.recursive_read_only: \"/c\": recursive read-only mounts must be readonly and of private propagation",
    );
    check_container(
        |c| {
            c.mounts.push(v1::Mount {
                container_path: "/i".into(),
                image: Some(v1::ImageSpec {
                    image: "a".into(),
                    ..Default::default()
                }),
                ..Default::default()
            });
        },
        "invalid config.mounts.readonly: \"false\": an image is mounted read-only alone",
    );
    check_container(
        with_mount(v1::Mount {
            uid_mappings: vec![v1::IdMapping::default()],
            ..Default::default()
        }),
        "invalid config.mounts.uidMappings: \"/c\": a mount's mappings must be those of the container's userns_options",
    );
}

#[test]
fn an_update_says_what_it_can_change() {
    let check = |change: fn(&mut v1::UpdateContainerResourcesRequest), expect: &str| {
        let mut request = v1::UpdateContainerResourcesRequest {
            linux: Some(Default::default()),
            ..Default::default()
        };
        change(&mut request);
        let said = update(&request).err().map(|error| error.to_string());
        assert_eq!(said.unwrap_or_default(), expect);
    };
    check(|_| {}, "");
    check(|r| r.linux = None, "linux is required");
    check(
        |r| drop(r.annotations.insert("a".into(), "b".into())),
        "annotations is not supported by this runtime: it knows none for an update of resources",
    );
    check(
        |r| {
            let linux = r.linux.as_mut().unwrap();
            linux.hugepage_limits.push(v1::HugepageLimit::default());
        },
        "linux.hugepage_limits is not supported by this runtime: limits of huge pages are set when a container is made",
    );
}

#[test]
fn credentials_are_for_the_registry_they_name() {
    let user = |name: &str, password: &str| ImageAuth {
        username: name.into(),
        password: password.into(),
        ..Default::default()
    };
    let given = |auth: v1::AuthConfig, host: &str| super::auth(Some(&auth), host).unwrap();
    assert_eq!(super::auth(None, "x").unwrap(), []);
    assert_eq!(given(Default::default(), "x"), []);
    let named = |server: &str| v1::AuthConfig {
        username: "u".into(),
        password: "p".into(),
        server_address: server.into(),
        ..Default::default()
    };
    for (server, host, is_given) in [
        ("", "quay.io", true),
        ("quay.io", "quay.io", true),
        ("https://quay.io/v2/", "quay.io", true),
        ("quay.io", "gcr.io", false),
        ("https://index.docker.io/v1/", "docker.io", true),
    ] {
        let expect: &[ImageAuth] = if is_given { &[user("u", "p")] } else { &[] };
        assert_eq!(given(named(server), host), expect, "{server} {host}");
    }
    let encoded = |text: &str| v1::AuthConfig {
        auth: text.into(),
        ..Default::default()
    };
    // user:pass:word
    assert_eq!(
        given(encoded("dXNlcjpwYXNzOndvcmQ="), "x"),
        [user("user", "pass:word")]
    );
    for wrong in ["!", "dXNlcg=="] {
        let error = super::auth(Some(&encoded(wrong)), "x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid auth.auth: \"(hidden)\": must be base64 of user:password"
        );
    }
}

#[test]
fn a_container_lives_in_its_sandboxs_namespaces() {
    use NamespaceMode::{Container, Node, Pod, Target};
    let options = |network, pid, ipc| NamespaceOptions {
        network,
        pid,
        ipc,
        ..Default::default()
    };
    let check = |sandbox: (NamespaceMode, NamespaceMode), wanted, expect: Result<_, &str>| {
        let sandbox = options(sandbox.0, sandbox.1, Pod);
        let (network, pid) = wanted;
        let got = namespaces_in(&sandbox, &options(network, pid, Pod));
        let got = got.map(|n| (n.network, n.pid));
        assert_eq!(
            got.map_err(|e| e.to_string()),
            expect.map_err(str::to_owned)
        );
    };
    check((Pod, Pod), (Pod, Pod), Ok((Pod, Pod)));
    check((Node, Node), (Pod, Pod), Ok((Node, Node)));
    check((Pod, Container), (Pod, Pod), Ok((Pod, Container)));
    check((Pod, Pod), (Pod, Container), Ok((Pod, Container)));
    check((Pod, Pod), (Pod, Target), Ok((Pod, Target)));
    check(
        (Pod, Pod),
        (Node, Pod),
        Err(
            "invalid namespace_options.network: \"NODE\": the pod sandbox has a namespace of its own",
        ),
    );
}
