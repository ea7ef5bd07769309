//! Stacks that containerd refuses, sorted by what it says.

use std::collections::BTreeMap;
use std::fmt;

/// What containerd refuses and ours takes, and why that is right.
const TAKEN: &[(&str, &str)] = &[
    (
        "failed call to UtimesNanoAt for … no such file or directory",
        "it lists a directory and removes it again: containerd then fails to set its times",
    ),
    (
        "lstat … not a directory",
        "the same, and something else stands in the directory's way now",
    ),
];

#[derive(Default)]
struct Class {
    count: u64,
    taken: u64,
    /// By ours, with its own words.
    refused: BTreeMap<String, u64>,
    /// Of one that ours takes, or of the first.
    seed: u64,
}

#[derive(Default)]
pub struct Refused {
    classes: BTreeMap<String, Class>,
}

impl Refused {
    /// `own`: why ours refuses it too.
    pub fn add(&mut self, seed: u64, theirs: &str, own: Option<&str>) {
        let class = self.classes.entry(class(theirs)).or_default();
        class.count += 1;
        if class.seed == 0 {
            class.seed = seed;
        }
        match own {
            Some(own) => *class.refused.entry(self::class(own)).or_default() += 1,
            None => {
                class.taken += 1;
                if class.taken == 1 {
                    class.seed = seed;
                }
            }
        }
    }

    pub fn count(&self) -> u64 {
        self.classes.values().map(|class| class.count).sum()
    }

    /// How many ours takes for no reason that is known.
    pub fn unexplained(&self) -> u64 {
        let unknown = |name: &&String| reason(name).is_none();
        self.classes
            .iter()
            .filter(|(name, _)| unknown(name))
            .map(|(_, class)| class.taken)
            .sum()
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, class) in &self.classes {
            let Class { count, taken, .. } = class;
            writeln!(f, "{count:7} {name}, seed {}", class.seed)?;
            for (own, count) in &class.refused {
                writeln!(f, "    {count:7} refused: {own}")?;
            }
            if *taken > 0 {
                let why = reason(name).unwrap_or("no reason is known");
                writeln!(f, "    {taken:7} taken by ours: {why}")?;
            }
        }
        Ok(())
    }
}

fn reason(class: &str) -> Option<&'static str> {
    TAKEN
        .iter()
        .find(|(name, _)| *name == class)
        .map(|(_, why)| *why)
}

/// A message without the paths in it: what comes before the first and behind the last.
fn class(message: &str) -> String {
    let Some(first) = message.find(['/', '"']) else {
        return message.to_owned();
    };
    let last = message.rsplit(": ").next().unwrap_or_default();
    format!("{}… {last}", &message[..first])
}

#[cfg(test)]
mod tests {
    use super::class;

    #[test]
    fn messages_are_sorted_without_their_paths() {
        let check = |message, expect| assert_eq!(class(message), expect);
        check(
            "mkparent /tmp/x y/a: not a directory",
            "mkparent … not a directory",
        );
        check(
            "failed to convert whiteout file \"a/.wh.b\": lstat /t/a: no such file or directory",
            "failed to convert whiteout file … no such file or directory",
        );
        check("too many links", "too many links");
    }
}
