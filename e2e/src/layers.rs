//! `cargo e2e layers`: stacks of layers, made up from a seed, unpacked by our image store and by containerd's own
//! applier; what is seen in the end must be the same.
//!
//! Ours is looked at through an overlay mount, as a container sees it; containerd applies every layer to one
//! directory. Of a directory that no archive lists upstream leaves the time of unpacking, which is no time to compare.
//!
//! A stack that containerd refuses is not among those asked for; ours must refuse it too, but for the reasons that
//! `refused` lists with why.

pub mod archive;
mod generate;
mod refused;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::programs::{Outputs, Profile, build_upstream};
use crate::step::Steps;

const PEER: &str = "layerpeer";
/// Differences that are shown whole.
const SHOWN: u64 = 10;

#[derive(Args)]
pub struct LayersOptions {
    /// Stacks that both unpack.
    #[arg(long, default_value_t = 5000)]
    stacks: u64,
    /// Where the making up begins; the same seed makes the same stacks.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keeps the stacks and what containerd made of them in this file, a compressed tar.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Keeps the stacks that differ, and both trees, below this directory.
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Runs the comparison.
///
/// # Errors
/// A program cannot be built or run, or a stack differs.
pub fn run(options: &LayersOptions) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "unpacking owners and devices needs root"
    );
    let outputs = Outputs::find().with_profile(Profile::Dev);
    let steps = Steps::new(outputs.logs())?;
    build_upstream(&steps, &outputs, &[PEER])?;
    let ours = build_example(&steps, &outputs)?;
    // The mounts are nobody else's, and go with this process.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;

    let scratch = tempfile::tempdir()?;
    let mut judge = Judge {
        ours: Peer::start(&ours)?,
        upstream: Peer::start(&outputs.upstream(PEER))?,
        scratch: scratch.path().to_owned(),
        began: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() - 1,
    };
    let mut record = options.record.as_deref().map(Record::create).transpose()?;
    let step = steps.start("compare layers", Some(options.stacks))?;
    let (mut same, mut different) = (0, 0);
    let mut refused = refused::Refused::default();
    let mut seed = options.seed;
    while same + different < options.stacks {
        let stack = generate::stack(seed);
        match judge.compare(&stack)? {
            Outcome::Same(tree) => {
                same += 1;
                if let Some(record) = &mut record {
                    record.add(seed, &stack, &tree)?;
                }
            }
            Outcome::Refused { theirs, own } => {
                refused.add(seed, &theirs, own.as_deref());
                if let (Some(keep), None) = (&options.keep, own) {
                    keep_stack(&keep.join(format!("taken-{seed}")), &stack, &theirs)?;
                }
            }
            Outcome::Different(what) => {
                different += 1;
                if different <= SHOWN {
                    println!("seed {seed} differs:\n{what}");
                }
                if let Some(keep) = &options.keep {
                    keep_stack(&keep.join(seed.to_string()), &stack, &what)?;
                }
            }
        }
        if refused.count() > 2 * options.stacks + 1000 {
            bail!("containerd refuses too many stacks\n{refused}");
        }
        seed += 1;
        step.advance();
    }
    step.done();
    if let Some(record) = record {
        record.finish()?;
    }
    println!(
        "{same} stacks are the same, {different} differ; containerd refused {} more:\n{refused}",
        refused.count()
    );
    ensure!(different == 0, "{different} stacks differ");
    let unexplained = refused.unexplained();
    ensure!(
        unexplained == 0,
        "ours takes {unexplained} stacks that containerd refuses"
    );
    Ok(())
}

fn keep_stack(to: &Path, stack: &generate::Stack, what: &str) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for (index, layer) in stack.layers.iter().enumerate() {
        std::fs::write(to.join(index.to_string()), layer)?;
    }
    std::fs::write(to.join("stack.txt"), &stack.text)?;
    std::fs::write(to.join("different.txt"), what)?;
    Ok(())
}

fn build_example(steps: &Steps, outputs: &Outputs) -> Result<PathBuf> {
    let step = steps.start("build the unpacker", None)?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&outputs.workspace).args([
        "build",
        "--package",
        "images",
        "--example",
        "unpack",
    ]);
    step.run(&mut command)?;
    step.done();
    Ok(outputs.ours("examples/unpack"))
}

enum Outcome {
    Same(Vec<String>),
    /// By upstream, with its words, and ours; `None`: ours takes it.
    Refused {
        theirs: String,
        own: Option<String>,
    },
    Different(String),
}

struct Judge {
    ours: Peer,
    upstream: Peer,
    scratch: PathBuf,
    /// In seconds since 1970; what is younger was touched by unpacking.
    began: u64,
}

impl Judge {
    fn compare(&mut self, stack: &generate::Stack) -> Result<Outcome> {
        let place = self.scratch.join("stack");
        if place.exists() {
            std::fs::remove_dir_all(&place)?;
        }
        std::fs::create_dir(&place)?;
        let mut layers = Vec::new();
        for (index, layer) in stack.layers.iter().enumerate() {
            let path = place.join(format!("layer{index}"));
            std::fs::write(&path, layer)?;
            layers.push(path.display().to_string());
        }
        let (theirs, own) = (place.join("theirs"), place.join("ours"));
        let mut request = vec!["apply".to_owned(), theirs.display().to_string()];
        request.extend(layers.iter().cloned());
        let answer = self.upstream.ask(&request)?;
        let mut request = vec![own.display().to_string()];
        request.extend(layers);
        if let Some(error) = answer.strip_prefix("error: ") {
            let own = self.ours.ask(&request)?;
            return Ok(Outcome::Refused {
                theirs: error.to_owned(),
                own: own.strip_prefix("error: ").map(str::to_owned),
            });
        }
        let expected = self.list(&theirs)?;
        let answer = self.ours.ask(&request)?;
        if let Some(error) = answer.strip_prefix("error: ") {
            let what = format!("ours refuses: {error}\n{}", stack.text);
            return Ok(Outcome::Different(what));
        }
        let directories: Vec<&str> = answer.split('\t').collect();
        let found = match directories.as_slice() {
            [one] => self.list(Path::new(one))?,
            several => {
                let target = place.join("merged");
                std::fs::create_dir(&target)?;
                let data = format!("lowerdir={}", several.join(":"));
                let flags = MsFlags::MS_RDONLY;
                mount(
                    Some("overlay"),
                    &target,
                    Some("overlay"),
                    flags,
                    Some(data.as_str()),
                )
                .context("mount an overlay")?;
                let found = self.list(&target);
                umount2(&target, MntFlags::MNT_DETACH)?;
                found?
            }
        };
        Ok(self.judge(expected, &found, &stack.text))
    }

    fn list(&mut self, root: &Path) -> Result<Vec<String>> {
        let answer = self
            .upstream
            .ask(&["list".to_owned(), root.display().to_string()])?;
        serde_json::from_str(&answer).with_context(|| format!("list {}: {answer}", root.display()))
    }

    fn judge(&self, expected: Vec<String>, found: &[String], text: &str) -> Outcome {
        let timeless: Vec<String> = expected
            .iter()
            .map(|line| self.without_unpacking_time(line))
            .collect();
        let mut what = String::new();
        let mut index = 0;
        let mut theirs = timeless.iter().peekable();
        while theirs.peek().is_some() || index < found.len() {
            let ours = found.get(index);
            match (theirs.peek(), ours) {
                (Some(line), Some(own)) if is_same(line, own) => {
                    theirs.next();
                    index += 1;
                }
                (Some(line), Some(own)) if name(line) == name(own) => {
                    what += &format!("  containerd: {line}\n  ours:       {own}\n");
                    theirs.next();
                    index += 1;
                }
                (Some(line), own) if own.is_none_or(|own| path_order(line, own)) => {
                    what += &format!("  only containerd: {line}\n");
                    theirs.next();
                }
                (_, Some(own)) => {
                    what += &format!("  only ours: {own}\n");
                    index += 1;
                }
                (_, None) => break,
            }
        }
        if what.is_empty() {
            Outcome::Same(timeless)
        } else {
            Outcome::Different(format!("{what}{text}"))
        }
    }

    /// `mtime=*` where upstream left the time of unpacking on a directory.
    fn without_unpacking_time(&self, line: &str) -> String {
        let Some((before, rest)) = line.split_once(" mtime=") else {
            return line.to_owned();
        };
        let (time, after) = rest.split_once(' ').unwrap_or((rest, ""));
        let seconds: u64 = time
            .split('.')
            .next()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        // No archive of ours is of the future.
        if before.contains(" mode=4") && seconds >= self.began {
            format!("{before} mtime=* {after}").trim_end().to_owned()
        } else {
            line.to_owned()
        }
    }
}

fn is_same(expected: &str, found: &str) -> bool {
    if expected == found {
        return true;
    }
    let Some((before, after)) = expected.split_once(" mtime=*") else {
        return false;
    };
    let Some((own_before, rest)) = found.split_once(" mtime=") else {
        return false;
    };
    let own_after = rest.find(' ').map_or("", |at| &rest[at..]);
    before == own_before && after == own_after
}

fn name(line: &str) -> &str {
    line.split_once("\" mode=").map_or(line, |(name, _)| name)
}

/// Whether the first comes first in a walk: a directory before what follows its content.
fn path_order(a: &str, b: &str) -> bool {
    let key = |line: &str| name(line).replace('/', "\0");
    key(a) < key(b)
}

/// A program that answers a line with a line.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    program: PathBuf,
}

impl Peer {
    fn start(program: &Path) -> Result<Self> {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self {
            input: child.stdin.take().context("no input")?,
            output: BufReader::new(child.stdout.take().context("no output")?),
            child,
            program: program.to_owned(),
        })
    }

    fn ask(&mut self, fields: &[String]) -> Result<String> {
        writeln!(self.input, "{}", fields.join("\t"))?;
        self.input.flush()?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            bail!("{} ended", self.program.display());
        }
        Ok(line.trim_end_matches('\n').to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the images crate's own tests hold their unpacker to: `<seed>/<index>` are layers, `<seed>/tree` the result.
struct Record {
    tar: tar::Builder<flate2::write::GzEncoder<std::fs::File>>,
}

impl Record {
    fn create(path: &Path) -> Result<Self> {
        let file =
            std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
        let gzip = flate2::write::GzEncoder::new(file, flate2::Compression::best());
        Ok(Self {
            tar: tar::Builder::new(gzip),
        })
    }

    fn add(&mut self, seed: u64, stack: &generate::Stack, tree: &[String]) -> Result<()> {
        for (index, layer) in stack.layers.iter().enumerate() {
            self.file(&format!("{seed}/{index}"), layer)?;
        }
        self.file(&format!("{seed}/tree"), (tree.join("\n") + "\n").as_bytes())
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        self.tar.append_data(&mut header, name, bytes)?;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.tar.into_inner()?.finish()?;
        Ok(())
    }
}
