//! What to do so that a pod's volumes are as its spec says: pure, no file system, no clock.

use std::collections::BTreeSet;

/// A volume the pod's containers mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    pub name: String,
    /// `kubernetes.io/empty-dir`.
    pub plugin: &'static str,
    /// Its content follows other objects.
    pub requires_remount: bool,
    /// It must be a mount point (tmpfs, hugetlbfs): a reboot takes it, and leaves its mark on disk.
    pub mounted: bool,
}

/// A volume as it is found on the node, by its directory or, for kinds without one, in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub name: String,
    pub plugin: String,
    /// It was set up to the end at some time.
    pub ready: bool,
    pub is_mount: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Set up, from nothing or from what a crash left.
    SetUp { volume: String },
    /// Bring the content up to date.
    Refresh { volume: String },
    /// As it should be.
    Keep { volume: String },
    /// No container mounts it any more.
    TearDown { plugin: String, volume: String },
}

/// In the order of `desired`, then what is to go.
pub fn reconcile(desired: &[Desired], observed: &[Observed]) -> Vec<Action> {
    let mut actions = Vec::with_capacity(desired.len());
    for want in desired {
        let volume = want.name.clone();
        let found = observed
            .iter()
            .find(|o| o.name == want.name && o.plugin == want.plugin);
        actions.push(match found {
            Some(found) if found.ready && (found.is_mount || !want.mounted) => {
                if want.requires_remount {
                    Action::Refresh { volume }
                } else {
                    Action::Keep { volume }
                }
            }
            _ => Action::SetUp { volume },
        });
    }
    let wanted: BTreeSet<_> = desired
        .iter()
        .map(|d| (d.plugin, d.name.as_str()))
        .collect();
    let stale = observed
        .iter()
        .filter(|o| !wanted.contains(&(o.plugin.as_str(), o.name.as_str())));
    actions.extend(stale.map(|o| Action::TearDown {
        plugin: o.plugin.clone(),
        volume: o.name.clone(),
    }));
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: (&str, bool, bool) = ("kubernetes.io/empty-dir", false, false);
    const MEMORY: (&str, bool, bool) = ("kubernetes.io/empty-dir", false, true);
    const SECRET: (&str, bool, bool) = ("kubernetes.io/secret", true, true);

    fn want(
        name: &str,
        (plugin, requires_remount, mounted): (&'static str, bool, bool),
    ) -> Desired {
        Desired {
            name: name.to_owned(),
            plugin,
            requires_remount,
            mounted,
        }
    }

    fn found(name: &str, plugin: &str, ready: bool, is_mount: bool) -> Observed {
        Observed {
            name: name.to_owned(),
            plugin: plugin.to_owned(),
            ready,
            is_mount,
        }
    }

    fn check(desired: &[Desired], observed: &[Observed], expect: &[Action]) {
        assert_eq!(
            reconcile(desired, observed),
            expect,
            "{desired:?} over {observed:?}"
        );
    }

    #[test]
    fn table() {
        let v = || "v".to_owned();
        check(&[], &[], &[]);
        check(&[want("v", DISK)], &[], &[Action::SetUp { volume: v() }]);
        check(
            &[want("v", DISK)],
            &[found("v", DISK.0, true, false)],
            &[Action::Keep { volume: v() }],
        );
        // A crash between the directory and its mark.
        check(
            &[want("v", DISK)],
            &[found("v", DISK.0, false, false)],
            &[Action::SetUp { volume: v() }],
        );
        // A reboot.
        check(
            &[want("v", MEMORY)],
            &[found("v", MEMORY.0, true, false)],
            &[Action::SetUp { volume: v() }],
        );
        check(
            &[want("v", MEMORY)],
            &[found("v", MEMORY.0, true, true)],
            &[Action::Keep { volume: v() }],
        );
        check(
            &[want("v", SECRET)],
            &[found("v", SECRET.0, true, true)],
            &[Action::Refresh { volume: v() }],
        );
        // The name means another kind now.
        check(
            &[want("v", DISK)],
            &[found("v", SECRET.0, true, true)],
            &[
                Action::SetUp { volume: v() },
                Action::TearDown {
                    plugin: SECRET.0.to_owned(),
                    volume: v(),
                },
            ],
        );
    }
}
