//! Real containers on this machine. Needs root; each test has directories and cgroups of its own.

#[path = "linux/harness.rs"]
mod harness;
#[path = "linux/image.rs"]
mod image;
#[path = "linux/pids.rs"]
mod pids;
#[path = "linux/torn.rs"]
mod torn;

use std::io::Write;
use std::time::Duration;

use harness::{Node, is_root, script};
use runtime::*;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_and_its_log_and_exit_code_are_kept() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("basic").await;
    let (code, log) = node
        .run(
            &sandbox,
            &script("echo out; echo err >&2; echo $FROM_IMAGE; exit 3"),
        )
        .await;
    assert_eq!(code, 3);
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["err", "out", "yes"]);
    let (code, log) = node
        .run(&sandbox, &script("cat /proc/1/comm; hostname; id -u; pwd"))
        .await;
    assert_eq!(
        (code, log.as_str()),
        (0, &*format!("sh\n{}0\n/\n", host_name()))
    );
    let status = node.runtime.pod_sandbox_status(&sandbox).await.unwrap();
    assert_eq!(status.state, SandboxState::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_cannot_run_end_with_128_and_start_error() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("starterror").await;
    for (command, words) in [
        (
            "/no/such/program",
            "exec: \"/no/such/program\": stat /no/such/program: no such file or directory",
        ),
        (
            "nosuchprogram",
            "exec: \"nosuchprogram\": executable file not found in $PATH",
        ),
        ("/bin/notexecutable", "permission denied"),
        ("/bin/garbage", "exec format error"),
        ("/etc", "is a directory"),
    ] {
        let config = ContainerConfig {
            command: vec![command.into()],
            ..script("")
        };
        let id = node
            .runtime
            .create_container(&sandbox, &config)
            .await
            .unwrap();
        let error = node.runtime.start_container(&id).await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::Start(text) if text.contains(words)),
            "{command}: {error}"
        );
        let status = node.runtime.container_status(&id).await.unwrap();
        assert_eq!(
            (status.state, status.exit_code, status.reason.as_str()),
            (ContainerState::Exited, 128, "StartError")
        );
        assert!(status.message.contains(words));
        node.runtime.remove_container(&id).await.unwrap();
    }
    // No PATH at all is no reason to fail.
    let mut config = script("");
    config.command = vec!["true".into()];
    config.envs = vec![("PATH".into(), String::new())];
    let id = node
        .runtime
        .create_container(&sandbox, &config)
        .await
        .unwrap();
    assert!(
        node.runtime.start_container(&id).await.is_err(),
        "an empty PATH finds nothing"
    );
    assert_eq!(node.run(&sandbox, &script("exit 0")).await.0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_signals_then_kills() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("stop").await;
    let polite = node
        .start(
            &sandbox,
            &script("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done"),
        )
        .await;
    let deaf = node
        .start(
            &sandbox,
            &script("trap '' TERM; while :; do sleep 0.1; done"),
        )
        .await;
    let mut own = script("trap 'exit 9' USR1; while :; do sleep 0.1; done");
    own.stop_signal = Some("SIGUSR1".into());
    let own = node.start(&sandbox, &own).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    for (id, code, signal) in [(polite, 7, None), (deaf, 137, Some(9)), (own, 9, None)] {
        node.runtime
            .stop_container(&id, Duration::from_secs(2))
            .await
            .unwrap();
        let status = node.runtime.container_status(&id).await.unwrap();
        assert_eq!(
            (status.exit_code, status.signal),
            (code, signal),
            "{status:?}"
        );
        node.runtime
            .stop_container(&id, Duration::ZERO)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn execs_run_with_streams_exit_codes_and_timeouts() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("exec").await;
    let id = node.start(&sandbox, &script("exec sleep 1000")).await;
    assert_eq!(
        node.exec(&id, "echo hi; echo no >&2; exit 5").await,
        (5, "hi\nno\n".into())
    );
    assert_eq!(
        node.exec(&id, "cat /proc/1/comm; echo $FROM_IMAGE").await,
        (0, "sleep\nyes\n".into())
    );
    let missing = node
        .runtime
        .exec_sync(&id, &["/no/such".into()], None, 1024)
        .await
        .unwrap_err();
    assert!(
        missing.to_string().contains("no such file or directory"),
        "{missing}"
    );
    let begun = std::time::Instant::now();
    let slow = ["/bin/sh", "-c", "sleep 100"].map(str::to_owned);
    let error = node
        .runtime
        .exec_sync(&id, &slow, Some(Duration::from_secs(1)), 1024)
        .await
        .unwrap_err();
    assert!(matches!(error, RuntimeError::Timeout { .. }));
    assert!(begun.elapsed() < Duration::from_secs(5));
    // A child that keeps the output open does not keep the answer.
    let begun = std::time::Instant::now();
    assert_eq!(
        node.exec(&id, "sleep 30 & echo done").await,
        (0, "done\n".into())
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
    // Output beyond what is wanted holds nobody up, and is not kept.
    let loud = ["/bin/sh", "-c", "seq 1 1000000; seq 1 1000000 >&2; exit 3"].map(str::to_owned);
    let timeout = Some(Duration::from_secs(20));
    let cut = node
        .runtime
        .exec_sync(&id, &loud, timeout, 11)
        .await
        .unwrap();
    assert_eq!((cut.exit_code, cut.stdout.len()), (3, 11));
    assert_eq!(cut.stdout, b"1\n2\n3\n4\n5\n6");
    assert_eq!(cut.stderr, cut.stdout);

    let options = StreamOptions {
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    };
    let command = ["/bin/sh", "-c", "cat; echo end >&2; exit 4"].map(str::to_owned);
    let mut session = node.runtime.exec(&id, &command, &options).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"through\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    session
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .await
        .unwrap();
    session
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .await
        .unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("through\n", "end\n"));
    assert_eq!(session.exit.await.unwrap().unwrap(), 4);

    let options = StreamOptions {
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
    };
    let command = [
        "/bin/sh",
        "-c",
        "read line; stty size; echo got $line; tty=1; exit 6",
    ]
    .map(str::to_owned);
    let mut session = node.runtime.exec(&id, &command, &options).await.unwrap();
    session
        .resize
        .as_ref()
        .unwrap()
        .send(TerminalSize {
            width: 101,
            height: 33,
        })
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"word\n")
        .await
        .unwrap();
    let mut out = String::new();
    session
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .await
        .unwrap();
    assert!(
        out.contains("33 101") && out.contains("got word"),
        "{out:?}"
    );
    assert_eq!(session.exit.await.unwrap().unwrap(), 6);

    // Leftovers: none in libcontainer's directory, no zombie below the shim.
    let state = node.directory.join("state/sandboxes").join(&sandbox);
    let left: Vec<_> = std::fs::read_dir(state.join("libcontainer").join(&id))
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(
        !left
            .iter()
            .any(|name| name.to_string_lossy().contains("tenant")),
        "{left:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_carries_stdin_output_and_the_exit() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("attach").await;
    let mut config = script("while read line; do echo got $line; done; echo end; exit 2");
    (config.stdin, config.stdin_once) = (true, true);
    let id = node.start(&sandbox, &config).await;
    let options = StreamOptions {
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    };
    let only_output = StreamOptions {
        stdin: false,
        ..options.clone()
    };
    let mut session = node.runtime.attach(&id, &options).await.unwrap();
    let mut second = node.runtime.attach(&id, &only_output).await.unwrap();
    // With stdinOnce the client waits for the container's end.
    assert!(!session.detaches_with_stdin && !second.detaches_with_stdin);
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\n").await.unwrap();
    drop(stdin); // stdinOnce: the container sees the end
    for session in [&mut session, &mut second] {
        let mut out = String::new();
        session
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut out)
            .await
            .unwrap();
        assert_eq!(out, "got one\ngot two\nend\n");
    }
    assert_eq!(session.exit.await.unwrap().unwrap(), 2);
    assert_eq!(second.exit.await.unwrap().unwrap(), 2);
    assert_eq!(node.log(&node.wait(&id).await), "got one\ngot two\nend\n");

    let mut config = script("stty size; read line; stty size; echo got $line");
    (config.stdin, config.tty) = (true, true);
    let id = node.start(&sandbox, &config).await;
    let options = StreamOptions {
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
    };
    let mut session = node.runtime.attach(&id, &options).await.unwrap();
    assert!(session.detaches_with_stdin);
    session
        .resize
        .as_ref()
        .unwrap()
        .send(TerminalSize {
            width: 90,
            height: 30,
        })
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"tty\n")
        .await
        .unwrap();
    let mut out = String::new();
    session
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .await
        .unwrap();
    assert!(out.contains("30 90") && out.contains("got tty"), "{out:?}");
    let log = node.log(&node.wait(&id).await);
    assert!(log.contains("got tty"), "{log:?}");

    // Where the stdin stays open it can be attached to again and again; where there is none, nothing is detached.
    let mut config = script("read line; read more; echo got $line $more");
    config.stdin = true;
    let id = node.start(&sandbox, &config).await;
    let options = StreamOptions {
        tty: false,
        ..options
    };
    for line in [b"one\n", b"two\n"] {
        let mut session = node.runtime.attach(&id, &options).await.unwrap();
        assert!(session.detaches_with_stdin);
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(line).await.unwrap();
        stdin.shutdown().await.unwrap();
    }
    assert_eq!(node.log(&node.wait(&id).await), "got one two\n");
    let id = node.start(&sandbox, &script("sleep 60")).await;
    let session = node.runtime.attach(&id, &options).await.unwrap();
    assert!(session.stdin.is_none() && !session.detaches_with_stdin);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_out_of_memory_kill_is_told() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("oom").await;
    let mut config = script("x=$(seq 1 100000000); echo survived");
    config.resources.memory_limit_bytes = Some(32 << 20);
    config.resources.memory_swap_limit_bytes = Some(32 << 20);
    let id = node.start(&sandbox, &config).await;
    let status = node.wait(&id).await;
    assert_eq!(status.reason, "OOMKilled", "{status:?}");
    assert_ne!(status.exit_code, 0);
    let (code, _) = node.run(&sandbox, &script("exit 0")).await;
    assert_eq!(code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileges_are_what_the_security_context_says_also_for_execs() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("privileges").await;
    let probe = "grep -E 'Cap(Prm|Eff|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status | tr -s ' \\t' ' '; id -u; id -g; id -G";
    let default: u64 = 0xa804_25fb;
    for (name, security, uid, effective, nnp, seccomp) in [
        (
            "root",
            SecurityContext {
                seccomp: SecurityProfile::RuntimeDefault,
                ..Default::default()
            },
            "0",
            default,
            0,
            2,
        ),
        (
            "user",
            SecurityContext {
                run_as_user: Some(1000),
                run_as_group: Some(1000),
                supplemental_groups: vec![77],
                merge_image_groups: true,
                no_new_privileges: true,
                seccomp: SecurityProfile::RuntimeDefault,
                ..Default::default()
            },
            "1000",
            0,
            1,
            2,
        ),
        ("plain", SecurityContext::default(), "0", default, 0, 0),
        (
            "dropped",
            SecurityContext {
                drop_capabilities: vec!["ALL".into()],
                add_capabilities: vec!["NET_BIND_SERVICE".into()],
                ..Default::default()
            },
            "0",
            1 << 10,
            0,
            0,
        ),
    ] {
        let mut config = script("exec sleep 1000");
        let namespaces = config.security.namespaces.clone();
        config.security = SecurityContext {
            namespaces,
            ..security.clone()
        };
        let mut once = config.clone();
        once.command = ["/bin/sh", "-c", probe].map(str::to_owned).to_vec();
        once.log_path = format!("{name}.log").into();
        let (code, log) = node.run(&sandbox, &once).await;
        assert_eq!(code, 0, "{name}: {log}");
        let id = node.start(&sandbox, &config).await;
        let (code, exec) = node.exec(&id, probe).await;
        assert_eq!(code, 0);
        assert_eq!(
            log, exec,
            "{name}: an exec must have what the container has"
        );
        let field = |key: &str| {
            log.lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap()
                .trim()
                .to_owned()
        };
        assert_eq!(
            u64::from_str_radix(&field("CapEff:"), 16).unwrap(),
            effective,
            "{name}: {log}"
        );
        assert_eq!(field("NoNewPrivs:"), nnp.to_string());
        assert_eq!(field("Seccomp:"), seccomp.to_string());
        let tail: Vec<&str> = log.lines().rev().take(3).collect();
        assert_eq!(tail[2], uid);
        if name == "user" {
            assert_eq!(tail[0], "1000 77 50000");
        }
    }
    // The profile bites: a new user namespace is not for the default profile.
    let mut config = script("unshare -U true; echo $?");
    config.security.seccomp = SecurityProfile::RuntimeDefault;
    let (_, log) = node.run(&sandbox, &config).await;
    assert!(log.contains("Operation not permitted"), "{log}");
    let mut sleeper = script("exec sleep 1000");
    sleeper.security.seccomp = SecurityProfile::RuntimeDefault;
    let id = node.start(&sandbox, &sleeper).await;
    assert!(
        node.exec(&id, "unshare -U true")
            .await
            .1
            .contains("Operation not permitted")
    );
}

/// A service manager that kills by cgroup (systemd by its own hierarchy, on a hybrid machine by the unified one) must find
/// neither shims nor containers where the process is that started them.
#[tokio::test(flavor = "multi_thread")]
async fn shims_and_containers_leave_the_cgroups_of_who_started_them() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("own-cgroup").await;
    node.start(&sandbox, &script("exec sleep 1000")).await;
    let own = harness::cgroup_root(&node.directory);
    let mut looked_at = 0;
    for hierarchy in ["systemd", "unified", "memory", "pids", "cpu", "."] {
        let top = std::path::Path::new("/sys/fs/cgroup").join(hierarchy);
        if !top.join("cgroup.procs").exists() {
            continue;
        }
        looked_at += 1;
        let shims = top
            .join(harness::shim_cgroup(&node.directory).trim_start_matches('/'))
            .join("cgroup.procs");
        let shims = std::fs::read_to_string(&shims).unwrap();
        let shim = shims.lines().find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.trim() == "gantry-shim")
        });
        let shim = shim.unwrap_or_else(|| panic!("no shim in {hierarchy}: {shims:?}"));
        let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"));
        for child in children.unwrap().split_whitespace() {
            let groups = std::fs::read_to_string(format!("/proc/{child}/cgroup"));
            // One that has ended and was not reaped yet is in no cgroup any more; the kernel says `/`. Asked last: it may end meanwhile.
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                continue;
            }
            for line in groups.unwrap().lines() {
                let (controller, path) = line.split_once(':').unwrap().1.split_once(':').unwrap();
                let kills_by = ["name=systemd", ""].contains(&controller);
                assert!(!kills_by || path.starts_with(&own), "{child}: {line}");
            }
        }
    }
    assert!(looked_at > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn cgroups_and_devices_hold() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("cgroups").await;
    let mut config = script(
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max; \
         for f in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs; do [ -e $f ] && (echo 1 > $f) 2>/dev/null && echo WROTE $f; done; \
         mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x 2>/dev/null && echo MADE; \
         mknod /tmp/sda b 7 0 && (cat /tmp/sda > /dev/null) 2>&1; cat /dev/null && echo null works; head -c 1 /dev/zero | wc -c",
    );
    config.resources.memory_limit_bytes = Some(64 << 20);
    let (_, log) = node.run(&sandbox, &config).await;
    assert!(log.starts_with("67108864\n"), "{log}");
    assert!(!log.contains("WROTE") && !log.contains("MADE"), "{log}");
    assert!(log.contains("Operation not permitted"), "{log}");
    assert!(log.contains("null works\n1\n"), "{log}");
    let mut config = script("exec sleep 1000");
    config.resources.memory_limit_bytes = Some(64 << 20);
    config.resources.memory_swap_limit_bytes = Some(64 << 20);
    let id = node.start(&sandbox, &config).await;
    let update = Resources {
        memory_limit_bytes: Some(128 << 20),
        cpu_shares: Some(512),
        ..Default::default()
    };
    node.runtime
        .update_container_resources(&id, &update)
        .await
        .unwrap();
    let (_, limit) = node.exec(&id, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max").await;
    assert_eq!(limit.trim(), "134217728");
    let stats = node.runtime.list_container_stats().await.unwrap();
    let own = stats.iter().find(|stats| stats.id == id).unwrap();
    assert!(
        own.memory_usage_bytes > 0 && own.cpu_usage_core_nanoseconds > 0,
        "{own:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_where_they_are_wanted() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("devices").await;
    let file = node.directory.join("disk");
    let losetup = |args: &[&str]| {
        let out = std::process::Command::new("losetup").args(args).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    for privileged in [false, true] {
        std::fs::write(&file, [b'g'; 1 << 20]).unwrap();
        let disk = losetup(&["--find", "--show", &file.to_string_lossy()]);
        let device = |path: &str| Device {
            container_path: path.into(),
            host_path: (&disk).into(),
            permissions: "mrw".into(),
        };
        let mut config = script(
            "for d in /dev/disk0 /mnt/disk1; do [ -b $d ] && head -c 3 $d; echo; done; \
             echo hi | dd of=/mnt/disk1 2>/dev/null && head -c 2 /dev/disk0",
        );
        config.devices = vec![device("/dev/disk0"), device("/mnt/disk1")];
        config.security.privileged = privileged;
        let (_, log) = node.run(&sandbox, &config).await;
        losetup(&["--detach", &disk]);
        assert_eq!(log, "ggg\nggg\nhi\n", "privileged: {privileged}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cdi_devices_bring_what_their_files_say() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let dir = node.directory.join("cdi");
    std::fs::create_dir_all(&dir).unwrap();
    let at = |name: &str| node.directory.join(name).display().to_string();
    std::fs::write(at("library"), "library\n").unwrap();
    let note = |what: &str| {
        json!({
            "path": "/bin/sh", "args": ["sh", "-c", format!("cat >> {}; echo {what} $V >> {}", at("states"), at("hooks"))], "env": ["V=x"],
        })
    };
    let hook = |name: &str| {
        let mut hook = note(name);
        hook["hookName"] = json!(name);
        hook
    };
    let spec = json!({
        "cdiVersion": "0.7.0", "kind": "v.com/gpu",
        "containerEdits": {"env": ["ALL=1"]},
        "devices": [
            {"name": "0", "containerEdits": {
                "env": ["GPU=0", "OWN=theirs"],
                "deviceNodes": [
                    {"path": "/dev/gpu0", "hostPath": "/dev/zero", "permissions": "rw"},
                    {"path": "/dev/seen", "hostPath": "/dev/zero", "permissions": "none", "type": "b", "major": 7, "minor": 200},
                ],
                "mounts": [{"hostPath": at("library"), "containerPath": "/usr/lib/v/library", "options": ["ro", "nosuid", "nodev", "bind"]}],
                "additionalGids": [4321],
                "hooks": [hook("prestart"), hook("createRuntime"), hook("createContainer"),
                    // It does not read what it is told.
                    {"hookName": "createContainer", "path": "/bin/true"}, hook("poststart")],
            }},
            {"name": "late", "containerEdits": {"hooks": [hook("startContainer")]}},
            {"name": "bad", "containerEdits": {"hooks": [{"hookName": "createRuntime", "path": "/bin/false"}]}},
        ],
    });
    std::fs::write(dir.join("v.json"), spec.to_string()).unwrap();
    std::fs::write(dir.join("broken.yaml"), "devices: [").unwrap();
    let sandbox = node.sandbox("cdi").await;
    let mut config = script(
        "echo $ALL $GPU $OWN; cat /usr/lib/v/library; (echo x > /usr/lib/v/library) 2>/dev/null || echo read-only; \
         head -c 2 /dev/gpu0 | wc -c; [ -b /dev/seen ] && (cat /dev/seen) 2>&1 | grep -o 'not permitted'; id -G; \
         i=0; while [ $i -lt 100 ] && ! grep -q poststart /hooks; do sleep 0.1; i=$((i+1)); done; cat /hooks; (sh -c 'kill -PIPE $$; echo ignored') 2>/dev/null",
    );
    std::fs::write(at("hooks"), "").unwrap();
    config.mounts = vec![Mount {
        container_path: "/hooks".into(),
        host_path: at("hooks").into(),
        ..Default::default()
    }];
    config.envs = vec![("OWN".into(), "own".into())];
    config.cdi_devices = vec!["v.com/gpu=0".into()];
    let (_, log) = node.run(&sandbox, &config).await;
    assert_eq!(
        log,
        "1 0 theirs\nlibrary\nread-only\n2\nnot permitted\n0 4321\nprestart x\ncreateRuntime x\ncreateContainer x\npoststart x\n"
    );
    let states = std::fs::read_to_string(at("states")).unwrap();
    assert!(states.contains("\"bundle\""), "{states}");
    // Before the CRI had a field.
    let mut annotated = script("echo $GPU");
    annotated.annotations = [("cdi.k8s.io/x".to_owned(), "v.com/gpu=0".to_owned())].into();
    assert_eq!(node.run(&sandbox, &annotated).await.1, "0\n");
    for (name, words) in [
        ("v.com/gpu=9", "unresolvable CDI devices v.com/gpu=9"),
        (
            "v.com/gpu=late",
            "CDI device v.com/gpu=late: startContainer hooks are not supported",
        ),
    ] {
        let mut config = script("true");
        config.cdi_devices = vec![name.into()];
        let told = node.runtime.create_container(&sandbox, &config).await;
        let told = told.unwrap_err().to_string();
        assert!(told.contains(words), "{told}");
    }
    let mut config = script("true");
    config.cdi_devices = vec!["v.com/gpu=bad".into()];
    let id = node
        .runtime
        .create_container(&sandbox, &config)
        .await
        .unwrap();
    let told = node
        .runtime
        .start_container(&id)
        .await
        .unwrap_err()
        .to_string();
    assert!(told.contains("hook"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_files_and_read_only_roots() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let mut sandbox = node.sandbox_config("mounts");
    sandbox.dns = Some(DnsConfig {
        servers: vec!["10.0.0.10".into()],
        searches: vec!["x.y".into()],
        options: vec![],
    });
    let sandbox = node.runtime.run_pod_sandbox(&sandbox).await.unwrap();
    let volume = node.directory.join("volume");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::write(volume.join("file"), "content\n").unwrap();
    let mount = |path: &str, host: &std::path::Path, readonly| Mount {
        container_path: path.into(),
        host_path: host.into(),
        readonly,
        ..Default::default()
    };
    let mut config = script(
        "cat /data/file; echo more > /data/new && echo wrote; (echo x > /ro/file) 2>/dev/null || echo refused; \
         (echo x > /etc/y) 2>/dev/null || echo root is read-only; cat /etc/resolv.conf; cat /file; echo shm > /dev/shm/x && cat /dev/shm/x; pwd",
    );
    config.mounts = vec![
        mount("/data", &volume, false),
        mount("/ro", &volume, true),
        mount("/file", &volume.join("file"), true),
    ];
    config.security.readonly_rootfs = true;
    config.working_dir = "/data/made/here".into();
    let (_, log) = node.run(&sandbox, &config).await;
    assert_eq!(
        log,
        "content\nwrote\nrefused\nroot is read-only\nsearch x.y\nnameserver 10.0.0.10\ncontent\nshm\n/data/made/here\n"
    );
    let (_, log) = node.run(&sandbox, &script("cat /dev/shm/x")).await;
    assert_eq!(log, "shm\n", "/dev/shm is the pod's");
    let mut volumes = script(
        "echo x > /home/x && echo y > /made/by/image/y && cat /home/x /made/by/image/y; \
         grep -c ' /home ' /proc/self/mountinfo",
    );
    volumes.security.readonly_rootfs = true;
    let (_, log) = node.run(&sandbox, &volumes).await;
    assert_eq!(
        log, "x\ny\n1\n",
        "an image's volumes are writable and beside the overlay"
    );
    let mut image =
        script("cat /img/etc/passwd | head -n 1; (echo x > /img/new) 2>/dev/null || echo refused");
    image.mounts = vec![
        Mount {
            container_path: "/img".into(),
            image: Some(image::NAME.into()),
            readonly: true,
            ..Default::default()
        },
        Mount {
            container_path: "/sub".into(),
            image: Some(image::NAME.into()),
            image_sub_path: "etc".into(),
            readonly: true,
            ..Default::default()
        },
    ];
    let (_, log) = node.run(&sandbox, &image).await;
    assert_eq!(log, "root:x:0:0:root:/root:/bin/sh\nrefused\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_at_dev_is_left_as_it_is() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let config = node.sandbox_config("dev");
    let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();
    let dev = node.directory.join("dev");
    std::fs::create_dir_all(dev.join("pts")).unwrap();
    std::fs::write(dev.join("ptmx"), "the node's\n").unwrap();
    std::os::unix::fs::symlink("/proc/self/fd", dev.join("fd")).unwrap();
    let told = node.directory.join("told");
    std::fs::write(&told, "").unwrap();
    let mut config = script(
        "cat /dev/ptmx; echo told > /dev/told; echo x > /dev/shm/x && cat /dev/shm/x; test -c /dev/pts/ptmx && echo pts; \
         (echo x > /dev/new) 2>/errors || echo refused",
    );
    let mount = |path: &str, host: &std::path::Path| Mount {
        container_path: path.into(),
        host_path: host.into(),
        ..Default::default()
    };
    config.mounts = vec![mount("/dev/told", &told), mount("/dev", &dev)];
    let (_, log) = node.run(&sandbox, &config).await;
    assert_eq!(log, "the node's\nx\npts\n");
    assert_eq!(std::fs::read_to_string(&told).unwrap(), "told\n");
    // Nothing but what was written, and places to mount at.
    let mut names: Vec<_> = std::fs::read_dir(&dev)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["fd", "mqueue", "new", "ptmx", "pts", "shm", "told"]);
    std::fs::remove_file(dev.join("new")).unwrap();
    config.mounts[1].readonly = true;
    let (_, log) = node.run(&sandbox, &config).await;
    // Behind what the first one said.
    assert!(log.ends_with("the node's\nx\npts\nrefused\n"), "{log}");
    assert!(!dev.join("new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_not_synced_to_the_disk() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let config = node.sandbox_config("volatile");
    let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();
    let (_, log) = node
        .run(
            &sandbox,
            &script("echo x > /x && cat /x; grep ' / / ' /proc/self/mountinfo"),
        )
        .await;
    let (said, root) = log.split_once('\n').unwrap();
    assert_eq!(said, "x");
    assert!(
        root.contains(" - overlay ") && root.contains("volatile"),
        "{root}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pid_namespace_can_be_shared() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let mut config = node.sandbox_config("sharedpid");
    config.namespaces.pid = NamespaceMode::Pod;
    let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();
    let shared = |text: &str| {
        let mut config = script(text);
        config.security.namespaces.pid = NamespaceMode::Pod;
        config
    };
    let first = node.start(&sandbox, &shared("exec sleep 12345")).await;
    let (_, log) = node
        .run(
            &sandbox,
            &shared("cat /proc/1/comm; cat /proc/*/cmdline | tr '\\0' ' '"),
        )
        .await;
    assert!(
        log.starts_with("gantry-init\n") && log.contains("sleep 12345"),
        "{log}"
    );
    // What a container leaves behind dies with it.
    let (_, _) = node.run(&sandbox, &shared("sleep 54321 & exit 0")).await;
    let (_, list) = node
        .exec(&first, "cat /proc/*/cmdline | tr '\\0' ' '")
        .await;
    assert!(!list.contains("sleep 54321"), "{list}");
    // An ephemeral container sees its target's processes.
    let plain = node.sandbox("target").await;
    let target = node.start(&plain, &script("exec sleep 777")).await;
    let mut debug = script("cat /proc/1/cmdline | tr '\\0' ' '");
    debug.security.namespaces.pid = NamespaceMode::Target;
    debug.security.namespaces.target_id = Some(target);
    let (_, log) = node.run(&plain, &debug).await;
    assert!(log.contains("sleep 777"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_one_running_sandbox() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("unique").await;
    let error = node
        .runtime
        .run_pod_sandbox(&node.sandbox_config("unique"))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("another sandbox of this pod is running"),
        "{error}"
    );
    assert_eq!(node.runtime.list_pod_sandboxes().await.unwrap().len(), 1);
    node.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    node.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    let again = node.sandbox("unique").await;
    node.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
    assert_eq!(node.run(&again, &script("exit 0")).await.0, 0);
    node.runtime.remove_pod_sandbox(&again).await.unwrap();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !table.contains(node.directory.to_str().unwrap()),
        "a mount is left"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_reopened_and_long_lines_cut() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("logs").await;
    let id = node.start(&sandbox, &script("echo before; read line < /tmp/go 2>/dev/null; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo after")).await;
    let path = node.runtime.container_status(&id).await.unwrap().log_path;
    while !std::fs::read_to_string(&path)
        .unwrap_or_default()
        .contains("before")
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rotated = path.with_extension("log.1");
    std::fs::rename(&path, &rotated).unwrap();
    node.runtime.reopen_container_log(&id).await.unwrap();
    node.exec(&id, "touch /tmp/go").await;
    node.wait(&id).await;
    assert!(
        std::fs::read_to_string(&rotated)
            .unwrap()
            .contains("before")
    );
    let new = std::fs::read_to_string(&path).unwrap();
    assert!(new.contains("after") && !new.contains("before"));
    let status = {
        let id = node
            .start(
                &sandbox,
                &script("head -c 40000 /dev/zero | tr '\\0' x; echo"),
            )
            .await;
        node.wait(&id).await
    };
    let text = std::fs::read_to_string(&status.log_path).unwrap();
    let tags: Vec<&str> = text
        .lines()
        .map(|line| line.split(' ').nth(2).unwrap())
        .collect();
    assert_eq!(tags, ["P", "P", "F"]);
    assert_eq!(text.matches('x').count(), 40000);
}

#[tokio::test(flavor = "multi_thread")]
async fn user_namespaces_hold_for_containers_volumes_and_execs() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let maps = vec![IdMapping {
        host_id: 500_000,
        container_id: 0,
        length: 65_536,
    }];
    let user = Some(UserNamespace {
        uids: maps.clone(),
        gids: maps,
    });
    let mut config = node.sandbox_config("userns");
    config.namespaces.network = NamespaceMode::Pod;
    config.namespaces.user = user.clone();
    let error = node.runtime.run_pod_sandbox(&config).await;
    // Without a pod CIDR the network refuses; everything before it must have been taken back.
    assert!(
        matches!(error, Err(RuntimeError::Network { .. })),
        "{error:?}"
    );
    assert!(node.runtime.list_pod_sandboxes().await.unwrap().is_empty());
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !table.contains(&format!("{}/state/sandboxes", node.directory.display())),
        "a pin is left"
    );

    node.runtime
        .update_pod_cidrs(vec!["10.213.0.0/24".into()])
        .await
        .unwrap();
    let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();
    let status = node.runtime.pod_sandbox_status(&sandbox).await.unwrap();
    assert!(
        status
            .ips
            .first()
            .is_some_and(|ip| ip.starts_with("10.213.0.")),
        "{:?}",
        status.ips
    );
    let volume = node.directory.join("volume");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::File::create(volume.join("file"))
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let inside = |text: &str| {
        let mut config = script(text);
        config.security.namespaces.network = NamespaceMode::Pod;
        config.security.namespaces.user = user.clone();
        config.mounts = vec![Mount {
            container_path: "/data".into(),
            host_path: volume.clone(),
            idmap: true,
            ..Default::default()
        }];
        config
    };
    let probe = "cat /proc/self/uid_map | tr -s ' '; id -u; stat -c %u /bin/sh /data/file; touch /data/made$$ /tmp/y && echo wrote; hostname";
    let (code, log) = node.run(&sandbox, &inside(probe)).await;
    assert_eq!(
        (code, log.as_str()),
        (0, " 0 500000 65536\n0\n0\n0\nwrote\nuserns\n")
    );
    let id = node.start(&sandbox, &inside("exec sleep 1000")).await;
    let (code, exec) = node.exec(&id, probe).await;
    assert_eq!((code, exec), (0, log), "an exec joins the user namespace");
    let (_, left) = node
        .exec(
            &id,
            "mount -t tmpfs none /root 2>&1; cat /proc/1/root/etc/passwd | head -n 1",
        )
        .await;
    assert!(left.contains("root:x"), "{left}");
    node.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
}

/// What of the node may a user namespace's root walk through: its own ways, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn user_namespaces_need_no_open_directory_of_the_node() {
    if !is_root() {
        return;
    }
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let node = Node::new().await;
    let maps = vec![IdMapping {
        host_id: 655_360,
        container_id: 0,
        length: 65_536,
    }];
    let user = Some(UserNamespace {
        uids: maps.clone(),
        gids: maps,
    });
    let mut config = node.sandbox_config("userns-closed");
    config.namespaces.network = NamespaceMode::Pod;
    config.namespaces.user = user.clone();
    config.dns = Some(DnsConfig {
        servers: vec!["10.0.0.10".into()],
        ..Default::default()
    });
    node.runtime
        .update_pod_cidrs(vec!["10.214.0.0/24".into()])
        .await
        .unwrap();
    let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();

    // As the kubelet's directories: nobody but root gets in.
    let pods = node.directory.join("pods");
    let (volume, memory, log) = (pods.join("volume"), pods.join("memory"), pods.join("log"));
    for directory in [&volume, &memory] {
        std::fs::create_dir_all(directory).unwrap();
    }
    std::fs::set_permissions(&pods, PermissionsExt::from_mode(0o700)).unwrap();
    nix::mount::mount(
        Some("tmpfs"),
        &memory,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    for directory in [&volume, &memory] {
        chown(directory, Some(0), Some(3000)).unwrap();
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o2770)).unwrap();
    }
    std::fs::create_dir(volume.join("below")).unwrap();
    std::fs::write(volume.join("secret"), "hush\n").unwrap();
    chown(volume.join("secret"), Some(1000), Some(3000)).unwrap();
    std::fs::set_permissions(volume.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    // A mount below a volume is seen too.
    nix::mount::mount(
        Some("tmpfs"),
        &volume.join("below"),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("mode=755"),
    )
    .unwrap();
    std::fs::write(volume.join("below/deep"), "deep\n").unwrap();
    std::fs::write(&log, "").unwrap();
    std::fs::set_permissions(&log, PermissionsExt::from_mode(0o666)).unwrap();

    let inside = |text: &str| {
        let mut config = script(text);
        config.envs = vec![("TOKEN".into(), "not-for-the-disk".into())];
        config.security.namespaces.network = NamespaceMode::Pod;
        config.security.namespaces.user = user.clone();
        config.security.run_as_user = Some(1000);
        config.security.supplemental_groups = vec![3000];
        let mount = |path: &str, host: &std::path::Path| Mount {
            container_path: path.into(),
            host_path: host.into(),
            idmap: true,
            ..Default::default()
        };
        config.mounts = vec![
            mount("/volume", &volume),
            mount("/memory", &memory),
            mount("/dev/termination-log", &log),
            Mount {
                container_path: "/img".into(),
                image: Some(image::NAME.into()),
                readonly: true,
                ..Default::default()
            },
        ];
        config
    };
    let (code, text) = node
        .run(
            &sandbox,
            &inside(
                "cat /volume/secret /volume/below/deep; touch /volume/made /memory/made && stat -c '%n %u %g' /volume/made /memory/made; \
                 echo said > /dev/termination-log; stat -c '%n %u' /img/bin/sh /home /etc/resolv.conf /etc/hostname; \
                 cat /etc/resolv.conf /etc/hostname; echo shm > /dev/shm/x && cat /dev/shm/x; env | grep TOKEN",
            ),
        )
        .await;
    assert_eq!(
        (code, text.as_str()),
        (
            0,
            "hush\ndeep\n/volume/made 1000 3000\n/memory/made 1000 3000\n/img/bin/sh 0\n/home 0\n/etc/resolv.conf 0\n\
             /etc/hostname 0\nnameserver 10.0.0.10\nuserns-closed\nshm\nTOKEN=not-for-the-disk\n"
        )
    );
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "said\n");
    let made = std::fs::metadata(volume.join("made")).unwrap();
    assert_eq!(
        (made.uid(), made.gid()),
        (1000, 3000),
        "ids on disk are the pod's own"
    );

    let id = node.start(&sandbox, &inside("exec sleep 1000")).await;
    let (code, text) = node.exec(&id, "echo $TOKEN; cat /volume/secret").await;
    assert_eq!((code, text.as_str()), (0, "not-for-the-disk\nhush\n"));
    assert_private(&node.directory, Some(655_360));

    // What fails inside says at which step, and the errno.
    let mut wrong = inside("true");
    wrong.mounts.push(Mount {
        container_path: "/etc/passwd/below".into(),
        host_path: volume.clone(),
        idmap: true,
        ..Default::default()
    });
    let id = node
        .runtime
        .create_container(&sandbox, &wrong)
        .await
        .unwrap();
    let error = node
        .runtime
        .start_container(&id)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("failed to prepare rootfs") && error.contains("/etc/passwd/below"),
        "{error}"
    );
    assert!(error.to_lowercase().contains("not a directory"), "{error}");

    node.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
    assert!(
        volume.join("below/deep").exists(),
        "taking the views away takes nothing from the node"
    );
    for point in [volume.join("below"), memory] {
        nix::mount::umount(&point).unwrap();
    }
}

/// Everything of the runtime's is for root alone: records 0600, directories 0700, or 0711 and 0710 where the root of
/// `user_namespace` must pass. No value of an environment is on disk.
fn assert_private(directory: &std::path::Path, user_namespace: Option<u32>) {
    use std::os::unix::fs::MetadataExt;
    let entries = |path: &std::path::Path| -> Vec<std::path::PathBuf> {
        std::fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    };
    let (root, state) = (directory.join("root"), directory.join("state"));
    let open = [
        state.clone(),
        state.join("sandboxes"),
        state.join("containers"),
    ];
    let mut directories = vec![directory.join("images"), root.clone(), state.clone()];
    for shared in entries(&root).into_iter().chain(entries(&state)) {
        directories.extend(entries(&shared).into_iter().filter(|path| path.is_dir()));
        directories.push(shared);
    }
    assert!(directories.len() > 8, "{directories:?}");
    for path in directories {
        let data = std::fs::metadata(&path).unwrap();
        let mode = data.mode() & 0o777;
        if open.contains(&path) && user_namespace.is_some() {
            assert_eq!(mode, 0o711, "{}", path.display());
        } else if user_namespace.is_some() && path.starts_with(&state) && mode == 0o710 {
            assert_eq!(Some(data.gid()), user_namespace, "{}", path.display());
        } else {
            assert_eq!(mode, 0o700, "{}", path.display());
        }
        for file in entries(&path) {
            let data = std::fs::symlink_metadata(&file).unwrap();
            let record = file
                .extension()
                .is_some_and(|ext| ext == "json" || ext == "log" || ext == "bpf");
            if data.is_file() && record {
                assert_eq!(data.mode() & 0o777, 0o600, "{}", file.display());
                let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
                assert!(
                    !file.starts_with(&root) || !text.contains("not-for-the-disk"),
                    "{}",
                    file.display()
                );
            }
            if file.ends_with("libcontainer") {
                assert_eq!(data.mode() & 0o777, 0o700, "{}", file.display());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_pod_is_open_to_the_nodes_users() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("private").await;
    let mut config = script("exec sleep 1000");
    config.envs = vec![("TOKEN".into(), "not-for-the-disk".into())];
    let id = node.start(&sandbox, &config).await;
    assert_private(&node.directory, None);
    let state = node.directory.join("state/sandboxes").join(&sandbox);
    for name in ["resolv.conf", "hostname"] {
        assert!(!state.join(name).exists(), "{name} is on the node's tmpfs");
    }
    let (_, environment) = node.exec(&id, "echo $TOKEN").await;
    assert_eq!(environment, "not-for-the-disk\n");
}

const CHILD_DIRECTORY: &str = "GANTRY_RT_CHILD_DIRECTORY";

/// Not a test of its own: the process that [`containers_outlive_a_killed_runtime`] kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by another test"]
async fn child_runtime() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else {
        return;
    };
    let node = Node::open(directory.as_ref()).await;
    let sandbox = node.sandbox("survivor").await;
    let short = node
        .start(
            &sandbox,
            &script("for i in $(seq 1 40); do echo line $i; sleep 0.05; done; exit 42"),
        )
        .await;
    let mut long = script("while read line; do echo got $line; done");
    long.stdin = true;
    long.envs = vec![("KEPT".into(), "over the restart".into())];
    let long = node.start(&sandbox, &long).await;
    println!("\nCHILD {sandbox} {short} {long}");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_a_killed_runtime() {
    if !is_root() {
        return;
    }
    let mut node = Node::new().await;
    let directory = node.directory.clone();
    // Two processes must not have the same store open.
    node.owned = false;
    drop(node);
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_runtime", "--ignored", "--nocapture"])
        .env(CHILD_DIRECTORY, &directory)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let words: Vec<String> = {
        use std::io::BufRead;
        std::io::BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
            .find(|line| line.starts_with("CHILD "))
            .expect("the child starts its containers")
            .split(' ')
            .map(str::to_owned)
            .collect()
    };
    let [_, sandbox, short, long] = &words[..] else {
        panic!("{words:?}")
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    child.kill().unwrap();
    child.wait().unwrap();

    let mut node = Node::open(&directory).await;
    node.owned = true;
    let status = node.runtime.container_status(short).await.unwrap();
    assert_eq!(status.state, ContainerState::Running, "{status:?}");
    let (_, environment) = node.exec(long, "echo $KEPT").await;
    assert_eq!(environment, "over the restart\n");
    let status = node.wait(short).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    let expected: String = (1..=40).map(|i| format!("line {i}\n")).collect();
    assert_eq!(node.log(&status), expected, "the log must be whole");
    assert_eq!(
        node.runtime
            .pod_sandbox_status(sandbox)
            .await
            .unwrap()
            .state,
        SandboxState::Ready
    );
    assert_eq!(
        node.exec(long, "echo still here").await,
        (0, "still here\n".into())
    );
    let options = StreamOptions {
        stdin: true,
        stdout: true,
        stderr: false,
        tty: false,
    };
    let mut session = node.runtime.attach(long, &options).await.unwrap();
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"again\n")
        .await
        .unwrap();
    let mut answer = [0u8; 10];
    session
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut answer)
        .await
        .unwrap();
    assert_eq!(&answer, b"got again\n");

    // And over a restart without anybody listening meanwhile: the exit record tells.
    drop(session);
    node.owned = false;
    let pid = node
        .runtime
        .container_status(long)
        .await
        .unwrap()
        .pid
        .unwrap();
    drop(node);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid as i32),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut node = Node::open(&directory).await;
    node.owned = true;
    let status = node.runtime.container_status(long).await.unwrap();
    assert_eq!(
        (status.state, status.exit_code, status.signal),
        (ContainerState::Exited, 137, Some(9))
    );
}

/// Not a test of its own: the process that [`a_start_cut_short_is_finished_or_undone`] kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by another test"]
async fn child_runtime_that_starts() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else {
        return;
    };
    let node = Node::open(directory.as_ref()).await;
    let sandbox = node.sandbox("cut").await;
    let config = script("echo ran; exec sleep 1000");
    let id = node
        .runtime
        .create_container(&sandbox, &config)
        .await
        .unwrap();
    println!("\nCHILD {id}");
    node.runtime.start_container(&id).await.unwrap();
    std::future::pending::<()>().await;
}

/// However early or late the runtime dies: the container runs, once, or there is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_cut_short_is_finished_or_undone() {
    use std::io::BufRead;
    if !is_root() {
        return;
    }
    let mut outcomes = Vec::new();
    for delay_ms in [0, 1, 2, 4, 8, 16, 24, 32] {
        let mut node = Node::new().await;
        let directory = node.directory.clone();
        // Two processes must not have the same store open.
        node.owned = false;
        drop(node);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child_runtime_that_starts",
                "--ignored",
                "--nocapture",
            ])
            .env(CHILD_DIRECTORY, &directory)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let line = std::io::BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
            .find(|line| line.starts_with("CHILD "))
            .expect("the child creates its container");
        let id = line.trim_start_matches("CHILD ");
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();

        let mut node = Node::open(&directory).await;
        node.owned = true;
        match node.runtime.container_status(id).await {
            Ok(status) => {
                assert_eq!(status.state, ContainerState::Running, "{status:?}");
                assert_eq!(node.exec(id, "echo here").await, (0, "here\n".into()));
                outcomes.push("runs");
            }
            Err(RuntimeError::ContainerNotFound { .. }) => {
                assert!(!directory.join("root/containers").join(id).exists());
                outcomes.push("undone");
            }
            Err(error) => panic!("{delay_ms} ms: {error}"),
        }
    }
    println!("{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_takes_its_sandbox_down() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("lostshim").await;
    let id = node.start(&sandbox, &script("exec sleep 31337")).await;
    let container_pid = node
        .runtime
        .container_status(&id)
        .await
        .unwrap()
        .pid
        .unwrap();
    let state = node.directory.join("state/sandboxes").join(&sandbox);
    let shim: i32 = std::fs::read_to_string(state.join("shim.pid"))
        .unwrap()
        .parse()
        .unwrap();
    let memory = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
    eprintln!("{memory}");
    let mut events = node.runtime.events();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(shim),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let status = node.wait(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await;
        if let RuntimeEvent::SandboxNotReady {
            sandbox_id,
            pod_uid,
        } = event.unwrap().unwrap()
        {
            assert_eq!(
                (sandbox_id.as_str(), pod_uid.as_str()),
                (sandbox.as_str(), "uid-lostshim")
            );
            break;
        }
    }
    assert_eq!(
        node.runtime
            .pod_sandbox_status(&sandbox)
            .await
            .unwrap()
            .state,
        SandboxState::NotReady
    );
    let alive = std::fs::read_to_string(format!("/proc/{container_pid}/cmdline"))
        .is_ok_and(|text| text.contains("31337"));
    assert!(!alive, "the container must not live on unwatched");
    // The pod can run again.
    let again = node.sandbox("lostshim").await;
    assert_eq!(node.run(&again, &script("exit 0")).await.0, 0);
}

fn on_pod_network(text: &str) -> ContainerConfig {
    let mut config = script(text);
    config.security.namespaces.network = NamespaceMode::Pod;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_network_has_addresses_forwarding_sysctls_and_counters() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    node.runtime
        .update_pod_cidrs(vec!["10.214.0.0/24".into()])
        .await
        .unwrap();
    let mut config = node.sandbox_config("network");
    config.namespaces.network = NamespaceMode::Pod;
    config.sysctls = [
        (
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "1".to_owned(),
        ),
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
    ]
    .into();
    let sandbox = node.runtime.run_pod_sandbox(&config).await.unwrap();
    let ip = node
        .runtime
        .pod_sandbox_status(&sandbox)
        .await
        .unwrap()
        .ips
        .remove(0);
    let mut probe = on_pod_network(
        "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; \
         cat /etc/hostname; echo $HOSTNAME; grep -c : /proc/net/dev; (echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null || echo refused",
    );
    probe.security.readonly_paths = vec!["/proc/sys".into()];
    probe.security.masked_paths = vec!["/proc/kcore".into(), "/sys/firmware".into()];
    let (_, log) = node.run(&sandbox, &probe).await;
    assert_eq!(log, "network\n1\n1\nnetwork\nnetwork\n2\nrefused\n");

    // A server in the pod's network namespace, reached by port-forward and from the host.
    let netns = node
        .directory
        .join("state/sandboxes")
        .join(&sandbox)
        .join("ns/net");
    let listener = std::thread::spawn(move || {
        let file = std::fs::File::open(netns).unwrap();
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        std::net::TcpListener::bind("0.0.0.0:8080").unwrap()
    })
    .join()
    .unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.write_all(b"hello").unwrap();
        }
    });
    let mut forwarded = node.runtime.port_forward(&sandbox, 8080).await.unwrap();
    let mut text = String::new();
    forwarded.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    let refused = node.runtime.port_forward(&sandbox, 81).await.err().unwrap();
    assert!(refused.to_string().contains("refused"), "{refused}");
    let mut direct = tokio::net::TcpStream::connect(format!("{ip}:8080"))
        .await
        .unwrap();
    text.clear();
    direct.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    let _id = node
        .start(&sandbox, &on_pod_network("exec sleep 1000"))
        .await;
    let stats = node.runtime.list_pod_sandbox_stats().await.unwrap();
    let own = stats.iter().find(|stats| stats.id == sandbox).unwrap();
    assert!(
        own.interfaces
            .iter()
            .any(|i| i.rx_bytes > 0 && i.tx_bytes > 0)
            && own.process_count == 1
            && own.containers.len() == 1,
        "{own:?}"
    );
    node.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_containers_and_the_nodes_namespaces() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let mut sandbox = node.sandbox_config("privileged");
    sandbox.hostname.clear();
    sandbox.namespaces.ipc = NamespaceMode::Node;
    sandbox.namespaces.pid = NamespaceMode::Node;
    let sandbox = node.runtime.run_pod_sandbox(&sandbox).await.unwrap();
    let mut config = script(
        "mount -t tmpfs none /tmp && echo mounted; ls /dev | grep -c . ; s=$(cat /proc/sys/vm/swappiness); echo $s > /proc/sys/vm/swappiness && echo proc; \
         grep Seccomp: /proc/self/status | tr -s '\\t' ' '; readlink /proc/self/ns/pid /proc/self/ns/ipc /proc/self/ns/net /proc/self/ns/uts; \
         echo $HOSTNAME; cat /etc/hostname",
    );
    config.security.privileged = true;
    config.security.namespaces.ipc = NamespaceMode::Node;
    config.security.namespaces.pid = NamespaceMode::Node;
    let (_, log) = node.run(&sandbox, &config).await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "mounted", "{log}");
    assert!(lines[1].parse::<u32>().unwrap() > 12, "{log}");
    assert_eq!(&lines[2..4], ["proc", "Seccomp: 0"], "{log}");
    for (line, name) in lines[4..8].iter().zip(["pid", "ipc", "net", "uts"]) {
        let own = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_eq!(*line, own.to_str().unwrap());
    }
    let name = host_name();
    assert_eq!(&lines[8..], [name.trim(), name.trim()], "{log}");
    // What a container of the node's PID namespace leaves behind dies with it.
    let mut config = script("sleep 424242 & exit 0");
    config.security.namespaces.pid = NamespaceMode::Node;
    config.security.namespaces.ipc = NamespaceMode::Node;
    let (code, _) = node.run(&sandbox, &config).await;
    assert_eq!(code, 0);
    let left = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == b"sleep\x00424242\x00")
    });
    assert!(!left);
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_propagate_as_asked() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let shared = node.directory.join("shared");
    std::fs::create_dir_all(shared.join("from-host")).unwrap();
    std::fs::create_dir_all(shared.join("from-container")).unwrap();
    let run = |args: &[&str]| {
        assert!(
            std::process::Command::new(args[0])
                .args(&args[1..])
                .status()
                .unwrap()
                .success()
        )
    };
    let path = shared.to_str().unwrap();
    run(&["mount", "--bind", path, path]);
    run(&["mount", "--make-rshared", path]);
    let sandbox = node.sandbox("propagation").await;
    let with = |propagation: MountPropagation, privileged: bool, text: &str| {
        let mut config = script(text);
        config.security.privileged = privileged;
        config.mounts = vec![
            Mount {
                container_path: "/shared".into(),
                host_path: shared.clone(),
                propagation,
                ..Default::default()
            },
            Mount {
                container_path: "/private".into(),
                host_path: shared.clone(),
                ..Default::default()
            },
        ];
        config
    };
    let wait = "while [ ! -e /tmp/go ]; do sleep 0.05; done; ls /shared/from-host /private/from-host | grep -c seen";
    let mut ids = Vec::new();
    for (propagation, expected) in [
        (MountPropagation::Private, "0\n"),
        (MountPropagation::HostToContainer, "1\n"),
    ] {
        ids.push((
            node.start(&sandbox, &with(propagation, false, wait)).await,
            expected,
        ));
    }
    let from = format!("{path}/from-host");
    run(&["mount", "-t", "tmpfs", "none", &from]);
    std::fs::write(shared.join("from-host/seen"), "").unwrap();
    for (id, expected) in ids {
        node.exec(&id, "touch /tmp/go").await;
        let status = node.wait(&id).await;
        assert_eq!(node.log(&status), expected);
    }
    let both = with(
        MountPropagation::Bidirectional,
        true,
        "mount -t tmpfs none /shared/from-container && touch /shared/from-container/deep; mount -t tmpfs none /private/from-host; exec sleep 1000",
    );
    let id = node.start(&sandbox, &both).await;
    let mut seen = false;
    for _ in 0..100 {
        seen = shared.join("from-container/deep").exists();
        if seen {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    node.runtime
        .stop_container(&id, Duration::ZERO)
        .await
        .unwrap();
    run(&["umount", "-R", path]);
    assert!(seen, "the container's mount must reach the host");
    let strange: Vec<&str> = table
        .lines()
        .filter(|line| line.contains("/rootfs/"))
        .collect();
    assert!(
        strange.is_empty(),
        "nothing else of the container's may: {strange:?}"
    );
    let plain = node.directory.join("plain");
    std::fs::create_dir_all(&plain).unwrap();
    run(&["mount", "-t", "tmpfs", "none", plain.to_str().unwrap()]);
    run(&["mount", "--make-private", plain.to_str().unwrap()]);
    let mut config = script("true");
    config.mounts = vec![Mount {
        container_path: "/x".into(),
        host_path: plain.clone(),
        propagation: MountPropagation::Bidirectional,
        ..Default::default()
    }];
    let refused = node.runtime.create_container(&sandbox, &config).await;
    run(&["umount", plain.to_str().unwrap()]);
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("not a shared mount")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_start_and_end_at_once() {
    if !is_root() {
        return;
    }
    let node = std::sync::Arc::new(Node::new().await);
    let tasks: Vec<_> = (0..12)
        .map(|number| {
            let node = node.clone();
            tokio::spawn(async move {
                let sandbox = node.sandbox(&format!("many-{number}")).await;
                let (code, log) = node
                    .run(&sandbox, &script(&format!("echo {number}; exit {number}")))
                    .await;
                assert_eq!((code, log), (number, format!("{number}\n")));
                node.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(node.runtime.list_containers().await.unwrap().is_empty());
}

/// `cargo test -p runtime --test linux -- --ignored --nocapture times`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints times"]
async fn times() {
    let node = Node::new().await;
    let mut laps: std::collections::BTreeMap<&str, Vec<Duration>> = Default::default();
    for number in 0..30 {
        let mut lap =
            |name, begun: std::time::Instant| laps.entry(name).or_default().push(begun.elapsed());
        let begun = std::time::Instant::now();
        let sandbox = node.sandbox(&format!("times-{number}")).await;
        lap("1 sandbox", begun);
        let mut config = script("exec sleep 1000");
        config.security.seccomp = SecurityProfile::RuntimeDefault;
        let begun = std::time::Instant::now();
        let id = node
            .runtime
            .create_container(&sandbox, &config)
            .await
            .unwrap();
        lap("2 create", begun);
        let begun = std::time::Instant::now();
        node.runtime.start_container(&id).await.unwrap();
        lap("3 start", begun);
        let begun = std::time::Instant::now();
        node.runtime
            .exec_sync(&id, &["/bin/true".into()], None, 1024)
            .await
            .unwrap();
        lap("4 exec", begun);
        let begun = std::time::Instant::now();
        node.runtime
            .stop_container(&id, Duration::ZERO)
            .await
            .unwrap();
        lap("5 stop", begun);
        let begun = std::time::Instant::now();
        node.runtime.remove_container(&id).await.unwrap();
        lap("6 remove", begun);
        let begun = std::time::Instant::now();
        node.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
        lap("7 remove sandbox", begun);
    }
    for (name, mut times) in laps {
        times.sort();
        eprintln!(
            "{name}: median {:?}, worst {:?}",
            times[times.len() / 2],
            times[times.len() - 1]
        );
    }
}

/// CVE-2024-21626: a working directory through a descriptor of the host that leaked.
#[tokio::test(flavor = "multi_thread")]
async fn no_descriptor_of_the_host_is_left_to_walk_through() {
    if !is_root() {
        return;
    }
    let node = Node::new().await;
    let sandbox = node.sandbox("leak").await;
    for number in [3, 5, 6, 7, 8, 9, 10, 12, 15] {
        let mut config = script("pwd");
        config.working_dir = format!("/proc/self/fd/{number}");
        let id = node
            .runtime
            .create_container(&sandbox, &config)
            .await
            .unwrap();
        let error = node.runtime.start_container(&id).await.unwrap_err();
        assert!(error.to_string().contains("chdir"), "{number}: {error}");
        node.runtime.remove_container(&id).await.unwrap();
    }
    let (_, log) = node.run(&sandbox, &script("ls -l /proc/self/fd")).await;
    assert!(!log.contains("memfd") && !log.contains("gantry"), "{log}");
    let id = node.start(&sandbox, &script("exec sleep 100")).await;
    let (_, list) = node.exec(&id, "ls /proc/self/fd").await;
    assert_eq!(list, "0\n1\n2\n3\n", "3 is the listing's own");
}
