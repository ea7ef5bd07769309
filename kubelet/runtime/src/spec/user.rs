//! Who a container runs as: from the pod's security context, the image's USER, and the image's own
//! `/etc/passwd` and `/etc/group`. Pure: the files come in as text.
//!
//! Upstream: containerd's `oci.WithUser…` and `WithAdditionalGIDs`; `opencontainers/runc` `libcontainer/user`.

use crate::api::SecurityContext;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// With the primary group, in the order found.
    pub groups: Vec<u32>,
    /// From /etc/passwd; `/` if the user is unknown there.
    pub home: String,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    #[error("runAsGroup is set without runAsUser or runAsUserName")]
    GroupAlone,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(Passwd {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// (name, gid, members)
fn group(text: &str) -> impl Iterator<Item = (&str, u32, Vec<&str>)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields
            .next()
            .unwrap_or("")
            .split(',')
            .map(str::trim)
            .collect();
        Some((name, gid, members))
    })
}

/// Resolves the user.
///
/// # Errors
/// A name that the image does not know. No retry helps.
pub fn resolve(
    security: &SecurityContext,
    image_user: &str,
    passwd_text: &str,
    group_text: &str,
) -> Result<User, UserError> {
    let (image_name, image_group) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image_user, None),
    };
    let wanted = match (security.run_as_user, security.run_as_username.as_deref()) {
        (Some(uid), _) => uid.to_string(),
        (None, Some(name)) if !name.is_empty() => name.to_owned(),
        _ => image_name.to_owned(),
    };
    let from_image = security.run_as_user.is_none() && security.run_as_username.is_none();
    let number: Option<u32> = wanted.parse().ok();
    let entry = if wanted.is_empty() {
        passwd(passwd_text).find(|entry| entry.uid == 0)
    } else {
        passwd(passwd_text).find(|entry| entry.name == wanted || Some(entry.uid) == number)
    };
    let (uid, mut gid, name, home) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.name, entry.home),
        (None, Some(uid)) => (uid, 0, "", ""),
        (None, None) if wanted.is_empty() => (0, 0, "", ""),
        (None, None) => return Err(UserError::UnknownUser(wanted)),
    };
    if let Some(wanted) = image_group.filter(|group| from_image && !group.is_empty()) {
        let number: Option<u32> = wanted.parse().ok();
        gid = group(group_text)
            .find(|(name, id, _)| *name == wanted || Some(*id) == number)
            .map(|(_, id, _)| id)
            .or(number)
            .ok_or_else(|| UserError::UnknownGroup(wanted.to_owned()))?;
    }
    if let Some(run_as_group) = security.run_as_group {
        gid = run_as_group;
    }
    let mut groups = vec![gid];
    if security.merge_image_groups && !name.is_empty() {
        groups.extend(
            group(group_text)
                .filter(|(_, _, members)| members.contains(&name))
                .map(|(_, id, _)| id),
        );
    }
    groups.extend(&security.supplemental_groups);
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|id| seen.insert(*id));
    let home = if home.is_empty() { "/" } else { home };
    Ok(User {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# a comment\nalice:x:1000:1001:A:/home/alice:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,alice\nstaff:x:50000:alice\nalice:x:1001:\n";

    fn check(
        security: SecurityContext,
        image: &str,
        expect: Result<(u32, u32, &[u32], &str), UserError>,
    ) {
        let got = resolve(&security, image, PASSWD, GROUP);
        match (got, expect) {
            (Ok(user), Ok((uid, gid, groups, home))) => {
                assert_eq!(
                    (
                        user.uid,
                        user.gid,
                        user.groups.as_slice(),
                        user.home.as_str()
                    ),
                    (uid, gid, groups, home)
                );
            }
            (got, expect) => assert_eq!(got.map(|_| ()), expect.map(|_| ())),
        }
    }

    #[test]
    fn users_are_resolved_as_containerd_does() {
        let none = SecurityContext::default;
        let merge = || SecurityContext {
            merge_image_groups: true,
            ..none()
        };
        check(none(), "", Ok((0, 0, &[0], "/root")));
        check(none(), "alice", Ok((1000, 1001, &[1001], "/home/alice")));
        check(none(), "alice:wheel", Ok((1000, 10, &[10], "/home/alice")));
        check(none(), "7777:8888", Ok((7777, 8888, &[8888], "/")));
        check(none(), "bob", Err(UserError::UnknownUser("bob".into())));
        check(
            none(),
            "alice:nogroup",
            Err(UserError::UnknownGroup("nogroup".into())),
        );
        check(
            merge(),
            "1000",
            Ok((1000, 1001, &[1001, 10, 50000], "/home/alice")),
        );
        check(
            SecurityContext {
                run_as_user: Some(1000),
                ..merge()
            },
            "root:wheel",
            Ok((1000, 1001, &[1001, 10, 50000], "/home/alice")),
        );
        check(
            SecurityContext {
                run_as_user: Some(42),
                run_as_group: Some(43),
                supplemental_groups: vec![44, 43, 45],
                ..merge()
            },
            "",
            Ok((42, 43, &[43, 44, 45], "/")),
        );
    }
}
