use super::declare::seconds;
use super::*;

fn check(args: &[&str]) -> Result<Options, String> {
    let flags = flag_set()
        .parse(args.iter().map(ToString::to_string))
        .map_err(|e| e.to_string())?;
    Options::from_flags(&flags, crate::registry::validate).map_err(|e| e.to_string())
}

#[test]
fn defaults_and_dual_stack() {
    let options = check(&[]).unwrap();
    assert_eq!(options.node_lifecycle.monitor_grace_period, seconds(50));
    assert_eq!(options.workers("gc"), 20);
    assert_eq!(options.workers("disruption"), 1);
    let args = [
        "--allocate-node-cidrs",
        "--cluster-cidr=10.0.0.0/16,fd00::/56",
        "--node-cidr-mask-size-ipv4=26",
    ];
    let options = check(&args).unwrap();
    assert_eq!(
        (
            options.node_ipam.mask_size_ipv4,
            options.node_ipam.mask_size_ipv6
        ),
        (26, 64)
    );
    let options = check(&["--cluster-cidr=10.0.0.0/16", "--node-cidr-mask-size=20"]).unwrap();
    assert_eq!(options.node_ipam.mask_size_ipv4, 20);
}

#[test]
fn no_option_does_nothing_in_silence() {
    use component_base::config::audit;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = audit::sources(&root, &["options.rs", "options/"]);
    // Looked at by this file alone: how many workers, and which allocator there is.
    let here = ["concurrent_syncs", "cidr_allocator_type"];
    for name in [
        "Options",
        "CaFiles",
        "SigningOptions",
        "NodeIpamOptions",
        "NodeLifecycleOptions",
        "VolumeOptions",
        "AttachDetachOptions",
        "AutoscalerOptions",
    ] {
        let fields = audit::fields(include_str!("../options.rs"), name);
        assert!(!fields.is_empty(), "{name}");
        for field in fields.iter().filter(|field| !here.contains(field)) {
            assert!(audit::is_read(&sources, field), "{name}.{field}");
        }
    }
}

#[test]
fn what_upstream_took_away_is_unknown() {
    assert_eq!(
        check(&["--concurrent-service-syncs=2"]).unwrap_err(),
        "unknown flag: --concurrent-service-syncs"
    );
    for name in ["service-lb-controller", "service", "-node-route-controller"] {
        let error = check(&[&format!("--controllers=*,{name}")]).unwrap_err();
        assert!(
            error.contains("not in the list of known controllers"),
            "{error}"
        );
    }
}

#[test]
fn errors_come_all_at_once() {
    let error = check(&[
        "--cluster-cidr=nonsense",
        "--max-endpoints-per-slice=0",
        "--controllers=*,nobody",
        "--cluster-signing-cert-file=a",
    ])
    .unwrap_err();
    for part in [
        "nonsense",
        "max-endpoints-per-slice",
        "nobody",
        "cluster-signing-key-file",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}
