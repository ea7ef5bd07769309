//! What a kube-proxy of iptables or ipvs left behind on this node.
//!
//! Its rules stay in the kernel when it ends, come to packets before ours do, and lead to the endpoints there were. They go once
//! ours are there, so that no connection falls between. Only what nft sees is removed: rules of iptables' nft variant.
//!
//! Upstream: `CleanupLeftovers` of pkg/proxy/iptables and pkg/proxy/ipvs, called as kube-proxy starts in nftables mode.

use std::collections::BTreeSet;
use std::path::Path;

use nftables::{Family, Nft, NftError, Operation, Outline, Transaction};

/// Where its chains are.
const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// Chains that rules of the base chains lead to. Those of the kubelet (`KUBE-FIREWALL` in the table filter, `KUBE-KUBELET-CANARY`,
/// `KUBE-IPTABLES-HINT`) are not among them.
const ENTRIES: &[&str] = &[
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-NODE-PORT",
    "KUBE-NODEPORTS",
    POSTROUTING,
    "KUBE-PROXY-CANARY",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
];
/// Masquerades what is marked.
const POSTROUTING: &str = "KUBE-POSTROUTING";
/// The others by name.
const INNER: &[&str] = &[
    "KUBE-LOAD-BALANCER",
    "KUBE-MARK-MASQ",
    "KUBE-SOURCE-RANGES-FIREWALL",
];
/// And those of each Service and endpoint. Upstream: `isServiceChainName`; `KUBE-XLB-` until 1.24.
const PREFIXES: &[&str] = &[
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-SEP-",
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-XLB-",
];

fn is_entry(chain: &str) -> bool {
    ENTRIES.contains(&chain)
}

fn is_left_over(chain: &str) -> bool {
    is_entry(chain)
        || INNER.contains(&chain)
        || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// What takes them out of a table; nothing where there are none. A chain that somebody else's rules lead to stays, with all that
/// it stands on: those rules would be refused, or mean something else.
fn removal(family: Family, table: &str, outline: &Outline) -> Transaction {
    let is_base = |chain: &str| outline.chains.get(chain).copied().unwrap_or(false);
    let mut kept: BTreeSet<&str> = outline
        .jumps
        .iter()
        .filter(|jump| !is_left_over(&jump.chain) && is_left_over(&jump.target))
        .filter(|jump| !(is_base(&jump.chain) && is_entry(&jump.target)))
        .map(|jump| jump.target.as_str())
        .collect();
    if !kept.is_empty() {
        // Whoever marks packets counts on it.
        kept.insert(POSTROUTING);
    }
    loop {
        let next = outline
            .jumps
            .iter()
            .filter(|jump| kept.contains(jump.chain.as_str()))
            .map(|jump| jump.target.as_str())
            .filter(|target| !kept.contains(target));
        let next: Vec<&str> = next.collect();
        if next.is_empty() {
            break;
        }
        kept.extend(next);
    }
    let goes = |chain: &str| is_left_over(chain) && !kept.contains(chain);
    let chains = || outline.chains.keys().filter(|chain| goes(chain)).cloned();
    let rules = outline
        .jumps
        .iter()
        .filter(|jump| !is_left_over(&jump.chain) && goes(&jump.target));
    let rules = rules.map(|jump| Operation::DeleteRule {
        chain: jump.chain.clone(),
        handle: jump.handle,
    });
    // Emptied first, they do not lead to each other any more.
    let emptied = chains().map(|chain| Operation::FlushChain { chain });
    let deleted = chains().map(|chain| Operation::DeleteChain { chain });
    let mut transaction = Transaction::new(family, table);
    transaction.operations = rules.chain(emptied).chain(deleted).collect();
    transaction
}

/// Removes them; says so if rules were left that nft does not see.
///
/// # Errors
/// nft cannot be asked, or a table changed meanwhile: a retry helps.
pub async fn remove(nft: &dyn Nft, family: Family) -> Result<(), NftError> {
    for table in TABLES {
        let Some(outline) = nft.outline(family, table).await? else {
            continue;
        };
        let transaction = removal(family, table, &outline);
        if !transaction.is_empty() {
            tracing::info!(
                family = family.as_str(),
                table,
                operations = transaction.operations.len(),
                "Removing the rules that another kube-proxy left"
            );
            nft.apply(&transaction).await?;
        }
    }
    let legacy = match family {
        Family::Ip => "/proc/net/ip_tables_names",
        Family::Ip6 => "/proc/net/ip6_tables_names",
    };
    if has_nat(Path::new(legacy)) {
        tracing::warn!(
            family = family.as_str(),
            "There are rules of iptables-legacy, which nft does not see: if another kube-proxy ran here, `iptables-legacy-save` shows what it left, until the next boot"
        );
    }
    Ok(())
}

/// Whether the kernel has a table nat of the old kind. It is not there where nobody ever asked for one.
fn has_nat(names: &Path) -> bool {
    let names = std::fs::read_to_string(names).unwrap_or_default();
    names.lines().any(|name| name == "nat")
}

#[cfg(test)]
mod tests {
    use nftables::Jump;

    use super::*;

    /// Chains (`!` before a base chain) and jumps, the first with handle 1; what is done.
    fn check(chains: &[&str], jumps: &[(&str, &str)], expect: &str) {
        let outline = Outline {
            chains: chains
                .iter()
                .map(|chain| {
                    (
                        chain.trim_start_matches('!').to_owned(),
                        chain.starts_with('!'),
                    )
                })
                .collect(),
            jumps: (1..)
                .zip(jumps)
                .map(|(handle, (chain, target))| Jump {
                    chain: (*chain).to_owned(),
                    handle,
                    target: (*target).to_owned(),
                })
                .collect(),
        };
        let text = removal(Family::Ip, "nat", &outline).text();
        let text = text.replace(" ip nat", "");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.join("; "), expect);
    }

    #[test]
    fn what_kube_proxy_made_goes_and_nothing_else() {
        check(
            &[
                "!PREROUTING",
                "KUBE-SERVICES",
                "KUBE-SVC-A",
                "KUBE-KUBELET-CANARY",
                "CNI-X",
            ],
            &[
                ("PREROUTING", "KUBE-SERVICES"),
                ("PREROUTING", "CNI-X"),
                ("KUBE-SERVICES", "KUBE-SVC-A"),
            ],
            "delete rule PREROUTING handle 1; flush chain KUBE-SERVICES; flush chain KUBE-SVC-A; \
             delete chain KUBE-SERVICES; delete chain KUBE-SVC-A",
        );
        check(
            &["!INPUT", "KUBE-FIREWALL"],
            &[("INPUT", "KUBE-FIREWALL")],
            "",
        );
        check(&[], &[], "");
    }

    #[test]
    fn what_others_count_on_stays_with_all_it_stands_on() {
        check(
            &[
                "!POSTROUTING",
                "KUBE-POSTROUTING",
                "KUBE-MARK-MASQ",
                "KUBE-SEP-A",
                "KUBE-SVC-A",
                "THEIRS",
            ],
            &[
                ("POSTROUTING", "KUBE-POSTROUTING"),
                ("THEIRS", "KUBE-SVC-A"),
                ("KUBE-SVC-A", "KUBE-SEP-A"),
                ("KUBE-SEP-A", "KUBE-MARK-MASQ"),
            ],
            "",
        );
        check(
            &[
                "!POSTROUTING",
                "KUBE-POSTROUTING",
                "KUBE-MARK-MASQ",
                "KUBE-SVC-A",
            ],
            &[
                ("POSTROUTING", "KUBE-MARK-MASQ"),
                ("POSTROUTING", "KUBE-POSTROUTING"),
            ],
            "flush chain KUBE-SVC-A; delete chain KUBE-SVC-A",
        );
    }
}
