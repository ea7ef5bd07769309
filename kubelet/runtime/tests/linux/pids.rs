//! What containers see of each other's processes, and of ours: never the node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::*;
use tokio::io::AsyncReadExt;

use super::harness::{Node, OPEN_FILES, is_root, script};

/// A file in the node's root directory. Whoever sees it sees the node.
struct Marker(PathBuf);

impl Marker {
    fn new() -> Self {
        let path = PathBuf::from(format!("/gantry-marker-{}", std::process::id()));
        std::fs::write(&path, "the node").unwrap();
        Self(path)
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap().trim_start_matches('/')
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn shared(text: &str) -> ContainerConfig {
    let mut config = script(text);
    config.security.namespaces.pid = NamespaceMode::Pod;
    config
}

/// As `kubectl debug --profile=general` and the documentation's example ask for.
fn tracing(text: &str) -> ContainerConfig {
    let mut config = shared(text);
    config.security.add_capabilities = vec!["SYS_PTRACE".into()];
    config.security.seccomp = SecurityProfile::RuntimeDefault;
    config
}

async fn shared_sandbox(node: &Node, name: &str) -> String {
    let mut config = node.sandbox_config(name);
    config.namespaces.pid = NamespaceMode::Pod;
    node.runtime.run_pod_sandbox(&config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_init_has_nothing_to_look_at() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = shared_sandbox(&node, "init").await;
    let id = node.start(&sandbox, &tracing("exec sleep 1000")).await;
    let look = "echo root: $(ls -a /proc/1/root/); echo cwd: $(ls -a /proc/1/cwd/); echo fd: $(ls /proc/1/fd); \
        echo cmdline: $(tr '\\0' ' ' < /proc/1/cmdline); echo environ: $(cat /proc/1/environ); echo exe: $(readlink /proc/1/exe); \
        echo mounts: $(wc -l < /proc/1/mountinfo); touch /proc/1/root/x 2>/dev/null && echo WROTE; \
        grep -E '^(Uid|CapEff|CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status | tr -s '\\t' ' '";
    let (_, text) = node.exec(&id, look).await;
    assert_eq!(
        text,
        "root: . ..\ncwd: . ..\nfd:\ncmdline: gantry-init\nenviron:\nexe: /memfd:gantry-shim (deleted)\nmounts: 1\n\
         Uid: 65535 65535 65535 65535\nCapPrm: 0000000000000000\nCapEff: 0000000000000000\nCapBnd: 0000000000000000\n\
         NoNewPrivs: 1\nSeccomp: 2\n"
    );
    // It still does its work: orphans are reaped.
    let (_, left) = node
        .exec(
            &id,
            "sh -c 'sleep 0.1 & exec true'; sleep 0.6; grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null",
        )
        .await;
    assert_eq!(left, "", "zombies");
    // Nor does its mount namespace lead anywhere, with more capabilities still.
    let mut config = tracing("nsenter -t 1 -m ls / 2>&1; nsenter -t 1 -m -r ls / 2>&1");
    config.security.add_capabilities.push("SYS_ADMIN".into());
    config.security.add_capabilities.push("SYS_CHROOT".into());
    let (_, log) = node.run(&sandbox, &config).await;
    assert!(
        log.lines().count() > 0 && log.lines().all(|line| line.contains("No such file")),
        "{log}"
    );
}

/// A container that may trace looks at every process there is, while others come and go.
#[tokio::test(flavor = "multi_thread")]
async fn no_process_shows_the_node_however_many_come_and_go() {
    if !is_root() {
        return;
    }
    let marker = Marker::new();
    let node = Node::new().await;
    let sandbox = shared_sandbox(&node, "storm").await;
    let look = format!(
        "look() {{ while test ! -e /tmp/end; do for seen in /proc/[0-9]*/root/{name} /proc/[0-9]*/cwd/{name}; do \
           test -e $seen && echo SEEN $seen; done; done; }}; look & look & look & echo looking; wait",
        name = marker.name()
    );
    let watcher = node.start(&sandbox, &tracing(&look)).await;
    let plain = node.sandbox("storm-target").await;
    let mut own = tracing(&look);
    own.security.namespaces.pid = NamespaceMode::Container;
    let own = node.start(&plain, &own).await;
    for round in 0..12 {
        let execs = (0..4).map(|_| node.exec(&watcher, "true"));
        let other = node.exec(&own, "true");
        let start = shared("exit 0");
        let mut debug = script("exit 0");
        debug.security.namespaces.pid = NamespaceMode::Target;
        debug.security.namespaces.target_id = Some(own.clone());
        let all = async {
            for exec in execs {
                assert_eq!(exec.await.0, 0);
            }
            assert_eq!(other.await.0, 0);
        };
        let ((started, _), (debugged, _), ()) =
            tokio::join!(node.run(&sandbox, &start), node.run(&plain, &debug), all);
        assert_eq!((started, debugged), (0, 0), "round {round}");
    }
    for id in [&watcher, &own] {
        node.exec(id, "touch /tmp/end").await;
        let status = node.wait(id).await;
        assert_eq!(node.log(&status), "looking\n");
    }
}

/// The numbers of a pod's processes have no meaning on the node.
#[tokio::test(flavor = "multi_thread")]
async fn containers_start_whatever_the_pids_have_come_to() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = shared_sandbox(&node, "forker").await;
    let many = "for i in $(seq 700); do /bin/true; done; echo done";
    let id = node.start(&sandbox, &shared("exec sleep 1000")).await;
    let plain = node.sandbox("forker-target").await;
    let target = node.start(&plain, &script("exec sleep 4711")).await;
    for _ in 0..2 {
        assert_eq!(node.exec(&id, many).await, (0, "done\n".into()));
        assert_eq!(node.exec(&target, many).await, (0, "done\n".into()));
        let look =
            "cat /proc/1/comm; test $$ -gt 700 && echo high; test -d /sys/fs/cgroup && echo cgroup";
        assert_eq!(
            node.run(&sandbox, &shared(look)).await,
            (0, "gantry-init\nhigh\ncgroup\n".into())
        );
        let mut debug = script(look);
        debug.security.namespaces.pid = NamespaceMode::Target;
        debug.security.namespaces.target_id = Some(target.clone());
        debug.security.privileged = true;
        assert_eq!(
            node.run(&plain, &debug).await,
            (0, "sleep\nhigh\ncgroup\n".into())
        );
    }
    // A target that is gone is told, not guessed.
    let mut debug = script("true");
    debug.security.namespaces.pid = NamespaceMode::Target;
    debug.security.namespaces.target_id = Some(target.clone());
    let late = node.runtime.create_container(&plain, &debug).await.unwrap();
    node.runtime
        .stop_container(&target, Duration::ZERO)
        .await
        .unwrap();
    let error = node.runtime.start_container(&late).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Start(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_born_in_a_shared_pid_namespace_are_as_any_other() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = shared_sandbox(&node, "born").await;
    // Leader of a session of its own, without anybody's descriptors, as the user asked for.
    let look = "cut -d' ' -f1,5,6 /proc/self/stat | { read a b c; test $b = $c && echo session; }; ls /proc/self/fd | tr '\\n' ' '; id -u; \
        grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t' ' '; grep -c ' /proc/interrupts ' /proc/self/mountinfo";
    let mut config = shared(look);
    config.security.run_as_user = Some(1000);
    config.security.seccomp = SecurityProfile::RuntimeDefault;
    config.security.masked_paths = vec!["/proc/interrupts".into()];
    let expected = "session\n0 1 2 3 1000\nNoNewPrivs: 0\nSeccomp: 2\n1\n";
    assert_eq!(node.run(&sandbox, &config).await, (0, expected.into()));
    let idle = ContainerConfig {
        command: vec!["/bin/sleep".into(), "1000".into()],
        ..config.clone()
    };
    let id = node.start(&sandbox, &idle).await;
    assert_eq!(node.exec(&id, look).await, (0, expected.into()));
    // What cannot be executed is told with its reason.
    for (command, words) in [
        ("/no/such", "stat /no/such: no such file or directory"),
        ("/bin/garbage", "exec: \"/bin/garbage\": exec format error"),
    ] {
        let config = ContainerConfig {
            command: vec![command.into()],
            ..shared("")
        };
        let id = node
            .runtime
            .create_container(&sandbox, &config)
            .await
            .unwrap();
        let error = node.runtime.start_container(&id).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    // A terminal is the process's own.
    let mut config = shared("exec sleep 1000");
    config.tty = true;
    let id = node.start(&sandbox, &config).await;
    let (_, terminal) = node
        .exec(
            &id,
            "for p in /proc/[0-9]*; do grep -q '(sleep)' $p/stat && cut -d' ' -f7 $p/stat; done",
        )
        .await;
    assert!(terminal.lines().any(|line| line != "0"), "{terminal:?}");
    let options = StreamOptions {
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
    };
    let command = [
        "/bin/sh",
        "-c",
        "test -t 0 && cat < /dev/null > /dev/tty && echo controlled",
    ];
    let mut session = node
        .runtime
        .exec(&id, &command.map(str::to_owned), &options)
        .await
        .unwrap();
    let mut text = String::new();
    let _ = session
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .await;
    assert!(text.contains("controlled"), "{text:?}");
    assert_eq!(session.exit.await.unwrap().unwrap(), 0);
}

/// A profile that forbids even `clone` is loaded without privileges, and still holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_forbids_to_be_born_still_holds() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = shared_sandbox(&node, "strict").await;
    let profile = node.directory.join("strict.json");
    std::fs::write(
        &profile,
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["clone", "clone3", "fork", "vfork", "mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }] }"#,
    )
    .unwrap();
    let mut config = shared("");
    config.security.seccomp = SecurityProfile::Localhost(profile);
    config.command = ["/bin/mkdir", "/tmp/x"].map(str::to_owned).to_vec();
    let (code, log) = node.run(&sandbox, &config).await;
    assert!(
        code == 1 && log.contains("Operation not permitted"),
        "{code} {log}"
    );
    config.command = ["/bin/grep", "NoNewPrivs", "/proc/self/status"]
        .map(str::to_owned)
        .to_vec();
    config.log_path = "strict.log".into();
    assert_eq!(
        node.run(&sandbox, &config).await,
        (0, "NoNewPrivs:\t1\n".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pid_namespace_can_be_shared_in_a_user_namespace() {
    if !is_root() {
        return;
    }
    let marker = Marker::new();
    let node = Node::new().await;
    let maps = vec![IdMapping {
        host_id: 700_000,
        container_id: 0,
        length: 65_536,
    }];
    let user = Some(UserNamespace {
        uids: maps.clone(),
        gids: maps,
    });
    node.runtime
        .update_pod_cidrs(vec!["10.214.0.0/24".into()])
        .await
        .unwrap();
    let inside = |mode: NamespaceMode, text: &str| {
        let mut config = script(text);
        config.security.namespaces.network = NamespaceMode::Pod;
        config.security.namespaces.pid = mode;
        config.security.namespaces.user = user.clone();
        config.security.add_capabilities = vec!["SYS_PTRACE".into()];
        config
    };
    let mut config = node.sandbox_config("userns-shared");
    config.namespaces.network = NamespaceMode::Pod;
    config.namespaces.user = user.clone();
    config.namespaces.pid = NamespaceMode::Pod;
    let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();
    let look = format!(
        "cat /proc/1/comm; ls /proc/1/root/ >/dev/null 2>&1 || echo hidden; test -e /proc/1/root/{} && echo SEEN; id -u",
        marker.name()
    );
    let expected = (0, "gantry-init\nhidden\n0\n".to_owned());
    let pod = NamespaceMode::Pod;
    assert_eq!(node.run(&sandbox, &inside(pod, &look)).await, expected);
    let id = node.start(&sandbox, &inside(pod, "exec sleep 1000")).await;
    assert_eq!(node.exec(&id, &look).await, expected);
    node.runtime.remove_pod_sandbox(&sandbox).await.unwrap();

    config.metadata.uid = "uid-userns-target".into();
    config.namespaces.pid = NamespaceMode::Container;
    let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();
    let own = NamespaceMode::Container;
    let target = node.start(&sandbox, &inside(own, "exec sleep 1000")).await;
    let mut debug = inside(
        NamespaceMode::Target,
        "cat /proc/1/comm; ls /proc/1/root/etc/passwd",
    );
    debug.security.namespaces.target_id = Some(target);
    let (code, log) = node.run(&sandbox, &debug).await;
    assert_eq!(
        (code, log.as_str()),
        (0, "sleep\n/proc/1/root/etc/passwd\n")
    );
    node.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_starters_reaches_shims_and_containers() {
    use std::os::fd::AsRawFd;
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    // A descriptor without close-on-exec, as a supervisor leaves them.
    let path = node.directory.join("inherited");
    let file = std::fs::File::create(&path).unwrap();
    let leaked = nix::fcntl::fcntl(file.as_raw_fd(), nix::fcntl::FcntlArg::F_DUPFD(200)).unwrap();
    let sandbox = node.sandbox("inherit").await;
    let id = node.start(&sandbox, &script("exec sleep 100")).await;
    let state = node.directory.join("state/sandboxes").join(&sandbox);
    let shim = std::fs::read_to_string(state.join("shim.pid")).unwrap();
    let pid = node
        .runtime
        .container_status(&id)
        .await
        .unwrap()
        .pid
        .unwrap();
    for process in [shim, pid.to_string()] {
        let links: Vec<PathBuf> = std::fs::read_dir(format!("/proc/{process}/fd"))
            .unwrap()
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .collect();
        assert!(
            !links.iter().any(|link| link == Path::new(&path)),
            "{links:?}"
        );
    }
    nix::unistd::close(leaked).unwrap();
    let limit = format!("{}\n{}\n", OPEN_FILES.soft, OPEN_FILES.hard);
    assert_eq!(
        node.exec(&id, "ulimit -Sn; ulimit -Hn").await,
        (0, limit.clone())
    );
    assert_eq!(
        node.run(&sandbox, &script("ulimit -Sn; ulimit -Hn")).await,
        (0, limit)
    );
}

/// What went wrong inside libcontainer comes out with its errno and its path.
#[tokio::test(flavor = "multi_thread")]
async fn errors_keep_their_causes() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("causes").await;
    let source = node.directory.join("source");
    std::fs::create_dir_all(&source).unwrap();
    let mut config = script("true");
    config.mounts = vec![Mount {
        container_path: "/bin/garbage/below".into(),
        host_path: source,
        ..Default::default()
    }];
    let id = node
        .runtime
        .create_container(&sandbox, &config)
        .await
        .unwrap();
    let error = node
        .runtime
        .start_container(&id)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("failed to prepare rootfs")
            && error.contains("/bin/garbage/below")
            && (error.contains("ENOTDIR") || error.contains("Not a directory")),
        "{error}"
    );
    let status = node.runtime.container_status(&id).await.unwrap();
    assert!(error.contains(&status.message), "{}", status.message);
}

/// To the kernel -1 is no user: it would have left root as it was.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_none_are_refused() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("ids").await;
    for (field, change) in [
        (
            "runAsUser",
            (|security: &mut SecurityContext| security.run_as_user = Some(u32::MAX))
                as fn(&mut SecurityContext),
        ),
        ("runAsGroup", |security| {
            security.run_as_user = Some(1);
            security.run_as_group = Some(1 << 31);
        }),
        ("supplementalGroups", |security| {
            security.supplemental_groups = vec![u32::MAX]
        }),
    ] {
        let mut config = script("id");
        change(&mut config.security);
        let error = node
            .runtime
            .create_container(&sandbox, &config)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(field) && error.contains("2147483647"),
            "{error}"
        );
    }
    let mut config = script("id -u; id -g; id -G");
    config.security.run_as_user = Some(2_147_483_647);
    config.security.supplemental_groups = vec![2_147_483_646];
    assert_eq!(
        node.run(&sandbox, &config).await,
        (0, "2147483647\n0\n0 2147483646\n".into())
    );
}
