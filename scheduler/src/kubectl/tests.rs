//! The command line.

use super::*;

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn pods_are_named_in_two_ways() {
    assert_eq!(pod_name(&words("pod a")).expect("a name"), "a");
    assert_eq!(pod_name(&words("pod/a")).expect("a name"), "a");
    for (text, want) in [
        ("node a", "only pods are scheduled"),
        ("a", "say which: pod NAME"),
        ("pod/", "is no name of a pod"),
        ("pod ../secrets", "is no name of a pod"),
    ] {
        let error = pod_name(&words(text)).expect_err(want).to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn nodes_to_add_are_many_of_something() {
    let add = nodes_to_add("3xm5.large").expect("three");
    assert_eq!((add.count, add.like.as_str()), (3, "m5.large"));
    // The first x parts them.
    assert_eq!(nodes_to_add("2xnode-x").expect("two").like, "node-x");
    for text in ["m5.large", "x", "3x", "-1xa", "threexa"] {
        let error = nodes_to_add(text).expect_err(text).to_string();
        assert!(error.contains("--add-nodes"), "{error}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("node.yaml");
    std::fs::write(
        &path,
        "metadata: {name: n}\nstatus: {allocatable: {cpu: '4'}}\n",
    )
    .expect("written");
    let add = nodes_to_add(&format!("2x@{}", path.display())).expect("two");
    let node = add.node.expect("a node");
    assert_eq!(node.metadata.name.as_deref(), Some("n"));
}

#[test]
fn files_hold_pods_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pods.yaml");
    let pod = |name: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: []}}\n")
    };
    std::fs::write(&path, format!("{}---\n{}", pod("a"), pod("b"))).expect("written");
    let pods = pods_of_file(&path).expect("two pods");
    let names: Vec<_> = pods
        .iter()
        .filter_map(|pod| pod.metadata.name.as_deref())
        .collect();
    assert_eq!(names, ["a", "b"]);
    std::fs::write(&path, "apiVersion: apps/v1\nkind: Deployment\n").expect("written");
    let error = pods_of_file(&path).expect_err("no pod").to_string();
    assert!(
        error.contains("\"Deployment\" of \"apps/v1\": only pods can be asked about"),
        "{error}"
    );
}

#[test]
fn the_command_line_is_sound() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
    let cli = Cli::try_parse_from(words("kubectl-gantry why pod a -n x -o json")).expect("valid");
    assert_eq!(cli.connection.namespace.as_deref(), Some("x"));
    let line = "kubectl-gantry whatif -f pod.yaml --config new.yaml --add-nodes 3xm5.large --drain node-7,node-8";
    let cli = Cli::try_parse_from(words(line)).expect("valid");
    let Ask::Whatif(what_if) = cli.question else {
        panic!("whatif")
    };
    assert_eq!(what_if.drain, ["node-7", "node-8"]);
}
