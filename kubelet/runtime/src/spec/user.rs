//! Who a container runs as: from the pod's security context, the image's USER, and the image's own
//! `/etc/passwd` and `/etc/group`. Pure: the files come in as text.
//!
//! **Invariant:** a number is an id and never meets a name: a user *named* 1000 is found by nobody who
//! asks for 1000. Ids end at [`MAX_ID`]; the kernel takes 4294967295 for "leave it as it is".
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
    #[error("invalid USER value {0:?} of the image: more than a user and a group")]
    Malformed(String),
    #[error("invalid {field} {value:?}: must be between 0 and {MAX_ID}, inclusive")]
    OutOfRange { field: &'static str, value: String },
}

/// The highest user or group id. Source: Kubernetes' `IsValidUserID`, containerd's `maxUserID`.
pub const MAX_ID: u32 = i32::MAX as u32;

const IMAGE_USER: &str = "USER of the image";
const RUN_AS_USER: &str = "runAsUser";

/// An id in range.
fn check(field: &'static str, id: u32) -> Result<u32, UserError> {
    if id > MAX_ID {
        return Err(UserError::OutOfRange {
            field,
            value: id.to_string(),
        });
    }
    Ok(id)
}

/// What a text asks for: an id if it is a number of any size, else a name.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Id(u32),
    Name(&'a str),
}

impl<'a> Wanted<'a> {
    fn read(field: &'static str, text: &'a str) -> Result<Self, UserError> {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self::Name(text));
        }
        match text.parse::<i64>().map(u32::try_from) {
            Ok(Ok(id)) if id <= MAX_ID => Ok(Self::Id(id)),
            _ => Err(UserError::OutOfRange {
                field,
                value: text.to_owned(),
            }),
        }
    }
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
/// A name that the image does not know, or an id that is none. No retry helps.
pub fn resolve(
    security: &SecurityContext,
    image_user: &str,
    passwd_text: &str,
    group_text: &str,
) -> Result<User, UserError> {
    let mut parts = image_user.splitn(3, ':');
    let (image_name, image_group) = (parts.next().unwrap_or_default(), parts.next());
    if parts.next().is_some() {
        return Err(UserError::Malformed(image_user.to_owned()));
    }
    let name = security
        .run_as_username
        .as_deref()
        .filter(|name| !name.is_empty());
    let wanted = match (security.run_as_user, name) {
        // The kubelet passes an image's number on as if the pod had asked for it.
        (Some(uid), _) if image_name.parse() == Ok(uid) => Wanted::Id(check(IMAGE_USER, uid)?),
        (Some(uid), _) => Wanted::Id(check(RUN_AS_USER, uid)?),
        (None, Some(name)) if name == image_name => Wanted::read(IMAGE_USER, name)?,
        (None, Some(name)) => Wanted::read("runAsUserName", name)?,
        (None, None) if image_name.is_empty() => Wanted::Id(0),
        (None, None) => Wanted::read(IMAGE_USER, image_name)?,
    };
    let from_image = security.run_as_user.is_none() && security.run_as_username.is_none();
    let entry = passwd(passwd_text).find(|entry| match wanted {
        Wanted::Id(uid) => entry.uid == uid,
        Wanted::Name(name) => entry.name == name,
    });
    let (uid, mut gid, name, home) = match (&entry, wanted) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.name, entry.home),
        (None, Wanted::Id(uid)) => (uid, 0, "", ""),
        (None, Wanted::Name(name)) => return Err(UserError::UnknownUser(name.to_owned())),
    };
    if let Some(wanted) = image_group.filter(|group| from_image && !group.is_empty()) {
        gid = match Wanted::read(IMAGE_USER, wanted)? {
            Wanted::Id(gid) => gid,
            Wanted::Name(wanted) => group(group_text)
                .find(|(name, ..)| *name == wanted)
                .map(|(_, id, _)| id)
                .ok_or_else(|| UserError::UnknownGroup(wanted.to_owned()))?,
        };
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
    for group in &security.supplemental_groups {
        groups.push(check("supplementalGroups or fsGroup", *group)?);
    }
    check("user id in /etc/passwd of the image", uid)?;
    let group_field = match security.run_as_group {
        Some(_) => "runAsGroup",
        None => "group id in /etc/passwd or /etc/group of the image",
    };
    check(group_field, gid)?;
    for id in &groups {
        check("group id in /etc/group of the image", *id)?;
    }
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
    fn a_number_never_meets_a_name() {
        let passwd = "root:x:0:0::/root:\n1000:x:0:0::/evil:\n4294967295:x:0:0::/evil:\nminus:x:4294967295:0::/:\nhigh:x:7:2147483648::/:\n";
        let group = "1000:x:0:\n77:x:0:minus\nbig:x:4294967295:root\n";
        let ask = |security: &SecurityContext, image: &str| {
            resolve(security, image, passwd, group)
                .map(|user| (user.uid, user.gid, user.groups))
                .map_err(|error| error.to_string())
        };
        let range = |field: &str, value: &str| {
            Err(format!(
                "invalid {field} {value:?}: must be between 0 and 2147483647, inclusive"
            ))
        };
        let none = SecurityContext::default();
        let user = |uid| SecurityContext {
            run_as_user: Some(uid),
            ..SecurityContext::default()
        };
        let named = |name: &str| SecurityContext {
            run_as_username: Some(name.into()),
            ..SecurityContext::default()
        };
        for (security, image, expected) in [
            (user(1000), "", Ok((1000, 0, vec![0]))),
            (none.clone(), "1000", Ok((1000, 0, vec![0]))),
            (named("1000"), "", Ok((1000, 0, vec![0]))),
            (none.clone(), "1000:1000", Ok((1000, 1000, vec![1000]))),
            (none.clone(), "1000:77", Ok((1000, 77, vec![77]))),
            (none.clone(), "+5", Ok((5, 0, vec![0]))),
            (none.clone(), "2147483647", Ok((MAX_ID, 0, vec![0]))),
            (none.clone(), "4294967295", range(IMAGE_USER, "4294967295")),
            (
                user(u32::MAX),
                "4294967295",
                range(IMAGE_USER, "4294967295"),
            ),
            (user(u32::MAX), "", range(RUN_AS_USER, "4294967295")),
            (user(1 << 31), "", range(RUN_AS_USER, "2147483648")),
            (none.clone(), "-1", range(IMAGE_USER, "-1")),
            (
                none.clone(),
                "99999999999999999999",
                range(IMAGE_USER, "99999999999999999999"),
            ),
            (
                none.clone(),
                "0:4294967295",
                range(IMAGE_USER, "4294967295"),
            ),
            (
                named("4294967295"),
                "",
                range("runAsUserName", "4294967295"),
            ),
            (
                none.clone(),
                "minus",
                range("user id in /etc/passwd of the image", "4294967295"),
            ),
            (
                none.clone(),
                "high",
                range(
                    "group id in /etc/passwd or /etc/group of the image",
                    "2147483648",
                ),
            ),
            (
                none.clone(),
                "root:big",
                range(
                    "group id in /etc/passwd or /etc/group of the image",
                    "4294967295",
                ),
            ),
            (
                SecurityContext {
                    merge_image_groups: true,
                    ..user(0)
                },
                "",
                range("group id in /etc/group of the image", "4294967295"),
            ),
            (
                SecurityContext {
                    run_as_group: Some(u32::MAX),
                    ..user(1)
                },
                "",
                range("runAsGroup", "4294967295"),
            ),
            (
                SecurityContext {
                    supplemental_groups: vec![3, u32::MAX],
                    ..user(1)
                },
                "",
                range("supplementalGroups or fsGroup", "4294967295"),
            ),
            (
                none.clone(),
                "a:b:c",
                Err(
                    "invalid USER value \"a:b:c\" of the image: more than a user and a group"
                        .into(),
                ),
            ),
        ] {
            assert_eq!(ask(&security, image), expected, "{security:?} {image:?}");
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
