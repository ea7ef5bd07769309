//! A virtual machine that runs: qemu by software alone, no network, a shell behind a serial line.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine as _;

use super::disk::Boot;
use crate::step::tail;

/// Begins the lines that are the console's own.
const MARK: &str = "=vm= ";
/// Until the console answers; an emulated machine boots in a minute or two.
const BOOT: Duration = Duration::from_secs(600);

/// Ends with the value.
pub struct Machine {
    qemu: Child,
    console: BufReader<UnixStream>,
    /// What the kernel and systemd say.
    pub log: PathBuf,
}

impl Machine {
    /// Boots, and waits until it takes scripts.
    ///
    /// # Errors
    /// qemu cannot be started, or the machine does not come up.
    pub fn boot(boot: &Boot, dir: &Path) -> Result<Self> {
        let (socket, log) = (dir.join("console.sock"), dir.join("boot.log"));
        let _ = fs::remove_file(&socket);
        let qemu_log = fs::File::create(dir.join("qemu.log"))?;
        let qemu = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                "4096",
            ])
            .args(["-display", "none", "-no-reboot", "-nic", "none"])
            .arg("-kernel")
            .arg(&boot.kernel)
            .arg("-initrd")
            .arg(&boot.initrd)
            .args([
                "-append",
                "console=ttyS0 panic=-1 systemd.unified_cgroup_hierarchy=1",
            ])
            .arg("-drive")
            .arg(format!(
                "file={},if=virtio,format=raw,cache=unsafe",
                boot.disk.display()
            ))
            .arg("-serial")
            .arg(format!("file:{}", log.display()))
            .arg("-chardev")
            .arg(format!(
                "socket,id=console,path={},server=on,wait=off",
                socket.display()
            ))
            .args(["-serial", "chardev:console"])
            .stdin(Stdio::null())
            .stdout(qemu_log.try_clone()?)
            .stderr(qemu_log)
            .spawn()
            .context("start qemu-system-x86_64")?;
        let mut half = Half { qemu: Some(qemu) };
        let deadline = Instant::now() + BOOT;
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("reach the console of the machine");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
            half.check(dir)?;
        };
        let qemu = half.qemu.take().expect("nobody took it");
        let mut machine = Self {
            qemu,
            console: BufReader::new(stream),
            log,
        };
        let ready = machine.until_mark(BOOT);
        ready.with_context(|| format!("the machine does not boot:\n{}", tail(&machine.log, 25)))?;
        Ok(machine)
    }

    /// Runs a script of `sh`, and gives what it prints.
    ///
    /// # Errors
    /// It fails, or takes too long; the error holds what it printed.
    pub fn run(&mut self, script: &str, patience: Duration) -> Result<String> {
        let mut line = base64::engine::general_purpose::STANDARD.encode(script);
        line.push('\n');
        self.console.get_mut().write_all(line.as_bytes())?;
        let (text, word) = self
            .until_mark(patience)
            .with_context(|| format!("in the machine: {script}"))?;
        if word != "0" {
            bail!("in the machine: {script}\nended with {word}:\n{text}");
        }
        Ok(text)
    }

    /// Reads up to the console's next word: what was before it, and the word.
    fn until_mark(&mut self, patience: Duration) -> Result<(String, String)> {
        let deadline = Instant::now() + patience;
        let (mut text, mut line) = (String::new(), Vec::new());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("nothing more after {} s:\n{text}", patience.as_secs());
            }
            self.console.get_ref().set_read_timeout(Some(left))?;
            match self.console.read_until(b'\n', &mut line) {
                Ok(0) => bail!("the machine ended:\n{text}\n{}", tail(&self.log, 15)),
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            let read = String::from_utf8_lossy(&line).into_owned();
            line.clear();
            match read.strip_prefix(MARK) {
                Some(word) => return Ok((text, word.trim().to_owned())),
                None => text += &read,
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A machine that nobody has reached yet.
struct Half {
    qemu: Option<Child>,
}

impl Half {
    fn check(&mut self, dir: &Path) -> Result<()> {
        if let Some(qemu) = &mut self.qemu
            && let Some(status) = qemu.try_wait()?
        {
            bail!(
                "qemu ended with {status}:\n{}",
                tail(&dir.join("qemu.log"), 10)
            );
        }
        Ok(())
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        if let Some(qemu) = &mut self.qemu {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
    }
}
