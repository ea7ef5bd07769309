use super::*;

fn check(registry: &str, files: &[(&str, &str)], expect: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let got: Vec<String> = match hosts(dir.path(), registry) {
        Ok(hosts) => hosts
            .iter()
            .map(|host| {
                let mut line = host.base.to_string();
                for (flag, name) in [
                    (host.pull, "pull"),
                    (host.resolve, "resolve"),
                    (host.tls.skip_verify, "skip_verify"),
                    (host.origin, "origin"),
                    (host.proxy, "proxy"),
                    (host.plain_fallback, "plain_fallback"),
                ] {
                    if flag {
                        line.push(' ');
                        line.push_str(name);
                    }
                }
                for ca in &host.tls.ca {
                    line.push_str(&format!(
                        " ca={}",
                        ca.strip_prefix(dir.path()).unwrap_or(ca).display()
                    ));
                }
                for (cert, key) in &host.tls.client {
                    line.push_str(&format!(
                        " client={}:{}",
                        cert.file_name().unwrap().display(),
                        key.file_name().unwrap().display()
                    ));
                }
                for (key, value) in &host.headers {
                    line.push_str(&format!(" {key}={}", value.to_str().unwrap()));
                }
                line
            })
            .collect(),
        Err(error) => vec![
            error
                .to_string()
                .split(": ")
                .skip(1)
                .collect::<Vec<_>>()
                .join(": "),
        ],
    };
    assert_eq!(got, expect);
}

#[test]
fn defaults() {
    check(
        "docker.io",
        &[],
        &["https://registry-1.docker.io/v2 pull resolve origin"],
    );
    check(
        "registry.k8s.io",
        &[],
        &["https://registry.k8s.io/v2 pull resolve origin"],
    );
    // This machine's: TLS that nobody verifies, or none; on port 80 none; on 443 and without a port TLS only.
    for (registry, expect) in [
        (
            "localhost:5000",
            "https://localhost:5000/v2 pull resolve skip_verify origin plain_fallback",
        ),
        (
            "127.0.0.1:5000",
            "https://127.0.0.1:5000/v2 pull resolve skip_verify origin plain_fallback",
        ),
        (
            "[::1]:5000",
            "https://[::1]:5000/v2 pull resolve skip_verify origin plain_fallback",
        ),
        ("localhost:80", "http://localhost/v2 pull resolve origin"),
        (
            "localhost:443",
            "https://localhost/v2 pull resolve skip_verify origin",
        ),
        (
            "localhost",
            "https://localhost/v2 pull resolve skip_verify origin",
        ),
    ] {
        check(registry, &[], &[expect]);
        // A hosts file that does not say where the server is changes nothing of that.
        let file = ("_default/hosts.toml", "[host.\"https://m.example\"]\n");
        let mirror = "https://m.example/v2 pull resolve proxy";
        check(registry, &[file], &[mirror, expect]);
    }
    check(
        "10.0.0.1:5000",
        &[],
        &["https://10.0.0.1:5000/v2 pull resolve origin"],
    );
}

#[test]
fn hosts_files() {
    let file = r#"
server = "https://registry-1.docker.io"
ca = "own.pem"
[host."http://z.example:5000"]
  capabilities = ["pull", "resolve"]
  [host."http://z.example:5000".header]
    x-custom = ["a", "b"]
[host."a.example/sub"]
  capabilities = ["pull"]
  skip_verify = true
  ca = ["one.pem", "/two.pem"]
  client = [["c.pem", "k.pem"], ["d.pem", ""]]
[host."https://b.example/proxy"]
  override_path = true
"#;
    check(
        "docker.io",
        &[("docker.io/hosts.toml", file)],
        &[
            "http://z.example:5000/v2 pull resolve proxy x-custom=a x-custom=b",
            "https://a.example/sub/v2 pull skip_verify proxy ca=docker.io/one.pem ca=/two.pem client=c.pem:k.pem client=d.pem:d.pem",
            "https://b.example/proxy pull resolve proxy",
            "https://registry-1.docker.io/v2 pull resolve origin ca=docker.io/own.pem",
        ],
    );
    let default = ("_default/hosts.toml", "[host.\"http://m\"]\n");
    check(
        "ghcr.io",
        &[default],
        &[
            "http://m/v2 pull resolve proxy",
            "https://ghcr.io/v2 pull resolve origin",
        ],
    );
    check(
        "r:5000",
        &[
            default,
            ("r_5000_/hosts.toml", "server = \"http://r:5000\""),
        ],
        &["http://r:5000/v2 pull resolve origin"],
    );
    check(
        "r",
        &[("r/x.crt", ""), ("r/y.cert", ""), ("r/y.key", "")],
        &["https://r/v2 pull resolve origin ca=r/x.crt client=y.cert:y.key"],
    );
}

/// Cases of containerd's `hosts.go`, each with what it makes of them.
#[test]
fn as_containerd_reads_them() {
    let file = |text: &'static str| [("r.io/hosts.toml", text)];
    let own = "https://r.io/v2 pull resolve origin";
    for (text, expect) in [
        // An empty list is no list.
        (
            "[host.\"https://m\"]\ncapabilities = []",
            vec!["https://m/v2 pull resolve proxy", own],
        ),
        (
            "[host.\"https://m\"]\ncapabilities = [\"push\"]",
            vec!["https://m/v2 proxy", own],
        ),
        // Capabilities without a server are nobody's.
        ("capabilities = [\"push\"]", vec![own]),
        (
            "server = \"https://r.io\"\ncapabilities = [\"resolve\"]",
            vec!["https://r.io/v2 resolve origin"],
        ),
        // Another host is told whom it stands for, whether it is called server or host.
        (
            "server = \"https://other.io\"\n[host.\"https://r.io\"]",
            vec![
                "https://r.io/v2 pull resolve",
                "https://other.io/v2 pull resolve origin proxy",
            ],
        ),
        (
            "server = \"https://r.io/v2\"",
            vec!["https://r.io/v2 pull resolve origin"],
        ),
        (
            "server = \"https://r.io/a/../b/\"",
            vec!["https://r.io/b/v2 pull resolve origin"],
        ),
        (
            "server = \"https://r.io\"\noverride_path = true",
            vec!["https://r.io/ pull resolve origin"],
        ),
        // Plain HTTP with settings of TLS: TLS is tried first, but on port 80.
        (
            "[host.\"http://m:5000\"]\nskip_verify = false",
            vec!["https://m:5000/v2 pull resolve proxy plain_fallback", own],
        ),
        (
            "[host.\"http://m:80\"]\nskip_verify = true",
            vec!["http://m/v2 pull resolve skip_verify proxy", own],
        ),
        ("", vec![own]),
        ("# nothing\n", vec![own]),
        ("unknown = 1", vec![own]),
    ] {
        check("r.io", &file(text), &expect);
    }
}

/// A file that makes no sense is not used; the certificates beside it are.
#[test]
fn broken_files() {
    let path = Path::new("/d/r/hosts.toml");
    for (text, expect) in [
        (
            "[host.\"http://m\"]\ncapabilities = [\"fly\"]",
            "\"/d/r/hosts.toml\": host \"http://m\": unknown capability \"fly\"",
        ),
        (
            "server = \"ftp://m\"",
            "\"/d/r/hosts.toml\": host \"ftp://m\": must be an http or https URL",
        ),
        (
            "server = \"https://r\"\n[host",
            "\"/d/r/hosts.toml\": TOML parse error at line 2",
        ),
        (
            "[host.\"https://m\"]\nca = 5",
            "\"/d/r/hosts.toml\": TOML parse error at line 2",
        ),
        (
            "[host.\"https://m\"]\nclient = [[\"one\"]]",
            "\"/d/r/hosts.toml\": host \"https://m\": invalid client pair [\"one\"]",
        ),
    ] {
        let error = parse(path, text, "r").unwrap_err().to_string();
        assert!(error.starts_with(expect), "{error}");
        check(
            "r",
            &[("r/hosts.toml", text), ("r/x.crt", ""), ("r/y.cert", "")],
            &["https://r/v2 pull resolve origin ca=r/x.crt client=y.cert:y.cert"],
        );
    }
}

#[test]
fn durations() {
    assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
    assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
    assert_eq!(parse_duration("2us"), Some(Duration::from_micros(2)));
    assert_eq!(parse_duration("5"), None);
    assert_eq!(parse_duration(""), None);
}
