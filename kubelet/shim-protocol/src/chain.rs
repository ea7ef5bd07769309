//! An error with its causes, in one line.

use std::error::Error;

/// The error's words and those of its causes, outermost first, parted by colons. What an error says of
/// its cause itself is not said again.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("failed to prepare rootfs")]
        Silent(#[source] Box<Failure>),
        #[error("mount {0}: {1}")]
        Telling(&'static str, #[source] io::Error),
    }

    #[test]
    fn every_cause_is_told_once() {
        let cause = io::Error::from_raw_os_error(22);
        let error = Failure::Silent(Box::new(Failure::Telling("/x", cause)));
        assert_eq!(
            chain(&error),
            "failed to prepare rootfs: mount /x: Invalid argument (os error 22)"
        );
    }
}
