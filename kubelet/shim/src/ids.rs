//! User and group ids of a process: checked before they are set, and read back after.
//!
//! To the kernel 4294967295 (-1) means "leave it as it is": set as an id it would leave root root.
//! Kubernetes' ids end at 2147483647, and so do containerd's.

use std::io;

use shim_protocol::ProcessSpec;

use crate::sys::check;

/// Source: containerd's `maxUserID`, Kubernetes' `IsValidUserID`.
pub const MAX_ID: u32 = i32::MAX as u32;

#[derive(Debug, thiserror::Error)]
pub enum IdError {
    #[error("{field} {value}: must be between 0 and {MAX_ID}, inclusive")]
    OutOfRange { field: &'static str, value: u32 },
    #[error("set {field} {wanted}: {source}")]
    Set {
        field: &'static str,
        wanted: String,
        #[source]
        source: io::Error,
    },
    #[error("{field} is {found} after it was set to {wanted}")]
    NotTaken {
        field: &'static str,
        wanted: String,
        found: String,
    },
}

/// # Errors
/// An id that is none; no retry helps.
pub fn validate(spec: &ProcessSpec) -> Result<(), IdError> {
    let groups = spec.additional_gids.iter();
    [("user id", spec.uid), ("group id", spec.gid)]
        .into_iter()
        .chain(groups.map(|gid| ("supplementary group id", *gid)))
        .try_for_each(|(field, value)| {
            if value > MAX_ID {
                return Err(IdError::OutOfRange { field, value });
            }
            Ok(())
        })
}

/// Becomes the spec's user. The capabilities must be kept by the caller.
pub fn set(spec: &ProcessSpec) -> Result<(), IdError> {
    validate(spec)?;
    let failed = |field, wanted: String| {
        move |source| IdError::Set {
            field,
            wanted,
            source,
        }
    };
    let groups = &spec.additional_gids;
    // SAFETY: the slice is live and as long as stated; the rest are integers.
    unsafe {
        check(libc::setgroups(groups.len(), groups.as_ptr()))
            .map_err(failed("supplementary groups", format!("{groups:?}")))?;
        check(libc::setresgid(spec.gid, spec.gid, spec.gid))
            .map_err(failed("group id", spec.gid.to_string()))?;
        check(libc::setresuid(spec.uid, spec.uid, spec.uid))
            .map_err(failed("user id", spec.uid.to_string()))?;
    }
    let mut wanted = groups.clone();
    wanted.sort_unstable();
    for (field, wanted, found) in [
        ("user id", vec![spec.uid; 3], users()),
        ("group id", vec![spec.gid; 3], main_groups()),
        ("supplementary groups", wanted, other_groups()),
    ] {
        let found = found.map_err(failed(field, format!("{wanted:?}")))?;
        if found != wanted {
            return Err(IdError::NotTaken {
                field,
                wanted: format!("{wanted:?}"),
                found: format!("{found:?}"),
            });
        }
    }
    Ok(())
}

/// Real, effective and saved.
fn users() -> io::Result<Vec<u32>> {
    let (mut real, mut effective, mut saved) = (0, 0, 0);
    // SAFETY: all three are live.
    check(unsafe { libc::getresuid(&mut real, &mut effective, &mut saved) })?;
    Ok(vec![real, effective, saved])
}

fn main_groups() -> io::Result<Vec<u32>> {
    let (mut real, mut effective, mut saved) = (0, 0, 0);
    // SAFETY: all three are live.
    check(unsafe { libc::getresgid(&mut real, &mut effective, &mut saved) })?;
    Ok(vec![real, effective, saved])
}

fn other_groups() -> io::Result<Vec<u32>> {
    // SAFETY: with a length of zero only the number is told; then the list has room for that many.
    unsafe {
        let count = check(libc::getgroups(0, std::ptr::null_mut()))?;
        let mut groups = vec![0; count as usize];
        check(libc::getgroups(count, groups.as_mut_ptr()))?;
        groups.sort_unstable();
        Ok(groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_mean_something_else_are_refused() {
        let spec = |uid, gid, groups: &[u32]| ProcessSpec {
            uid,
            gid,
            additional_gids: groups.to_vec(),
            ..Default::default()
        };
        for (spec, expected) in [
            (spec(0, 0, &[]), None),
            (spec(MAX_ID, MAX_ID, &[MAX_ID]), None),
            (spec(u32::MAX, 0, &[]), Some("user id 4294967295")),
            (spec(1 << 31, 0, &[]), Some("user id 2147483648")),
            (spec(0, u32::MAX, &[]), Some("group id 4294967295")),
            (
                spec(0, 0, &[5, u32::MAX]),
                Some("supplementary group id 4294967295"),
            ),
        ] {
            let found = validate(&spec).err().map(|error| error.to_string());
            let words = "must be between 0 and 2147483647, inclusive";
            assert_eq!(found, expected.map(|text| format!("{text}: {words}")));
        }
    }
}
