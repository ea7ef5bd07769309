//! Files as block devices. A device is found again by the file behind it (device and inode), never by a name that was remembered:
//! names are the kernel's, and it gives them to others after a restart.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{fs, io, mem};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use thiserror::Error;

/// Upstream: linux/loop.h
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
/// The kernel's major number of loop devices.
const LOOP_MAJOR: u64 = 7;
/// Others take free devices, too: so often another one is asked for.
const MAX_TRIES: u32 = 32;

/// A loop device could not be had, changed or given back.
#[derive(Debug, Error)]
pub enum LoopError {
    #[error("{what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("ask for a free loop device")]
    NoneFree(#[source] io::Error),
    #[error("{0} free loop devices in a row were taken by others")]
    Taken(u32),
}

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

impl Info {
    fn zeroed() -> Self {
        // SAFETY: plain integers and arrays of them, for which zero is a value.
        unsafe { mem::zeroed() }
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LoopError {
    move |source| LoopError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

/// The device of the file, made if there is none of this kind.
///
/// # Errors
/// The file is not there, or the kernel has no device to give.
pub fn attach(file: &Path, read_only: bool) -> Result<PathBuf, LoopError> {
    if let Some((device, _)) = devices_of(file)?
        .into_iter()
        .find(|(_, found)| *found == read_only)
    {
        return Ok(device);
    }
    let backing = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .open(file)
        .map_err(failed("open", file))?;
    let control_path = Path::new("/dev/loop-control");
    let control = File::open(control_path).map_err(failed("open", control_path))?;
    for _ in 0..MAX_TRIES {
        // SAFETY: the call takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(LoopError::NoneFree(io::Error::last_os_error()));
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        make_node(&path, u64::from(number.unsigned_abs()))?;
        let device = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(&path)
            .map_err(failed("open", &path))?;
        let mut config = Config {
            fd: backing.as_raw_fd().unsigned_abs(),
            block_size: 0,
            info: Info::zeroed(),
            reserved: [0; 8],
        };
        if read_only {
            config.info.flags = LO_FLAGS_READ_ONLY;
        }
        // SAFETY: the argument is a `loop_config` of the kernel's layout that outlives the call.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        if done == 0 {
            return Ok(path);
        }
        let err = io::Error::last_os_error();
        if err.raw_os_error() != Some(libc::EBUSY) {
            return Err(failed("set up", &path)(err));
        }
    }
    Err(LoopError::Taken(MAX_TRIES))
}

/// Gives back every device of the file; the kernel does so once the last user closes it.
///
/// # Errors
/// The kernel refuses.
pub fn detach(file: &Path) -> Result<(), LoopError> {
    for (path, _) in devices_of(file)? {
        let device = File::open(&path).map_err(failed("open", &path))?;
        // SAFETY: the call takes no argument.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) };
        let err = io::Error::last_os_error();
        if done != 0 && err.raw_os_error() != Some(libc::ENXIO) {
            return Err(failed("give back", &path)(err));
        }
    }
    Ok(())
}

/// Tells the file's devices that it has another size.
///
/// # Errors
/// The kernel refuses.
pub fn resize(file: &Path) -> Result<(), LoopError> {
    for (path, _) in devices_of(file)? {
        let device = File::open(&path).map_err(failed("open", &path))?;
        // SAFETY: the call takes no argument.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY) } != 0 {
            return Err(failed("resize", &path)(io::Error::last_os_error()));
        }
    }
    Ok(())
}

/// The file's devices, and whether each is read-only. A file that is gone has none.
///
/// # Errors
/// The kernel's list cannot be read.
pub fn devices_of(file: &Path) -> Result<Vec<(PathBuf, bool)>, LoopError> {
    let (device, inode) = match fs::metadata(file) {
        Ok(meta) => (meta.dev(), meta.ino()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(failed("look at", file)(err)),
    };
    let list = Path::new("/sys/block");
    let mut found = Vec::new();
    for entry in fs::read_dir(list).map_err(failed("read", list))? {
        let entry = entry.map_err(failed("read", list))?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("loop"))
            .and_then(|number| number.parse().ok());
        // Only devices with a file behind them have this folder.
        let (Some(number), true) = (number, entry.path().join("loop").exists()) else {
            continue;
        };
        let path = Path::new("/dev").join(name);
        make_node(&path, number)?;
        // Given back meanwhile.
        let Ok(open) = File::open(&path) else {
            continue;
        };
        let mut info = Info::zeroed();
        // SAFETY: the argument is a `loop_info64` of the kernel's layout, which the kernel fills.
        let done = unsafe { libc::ioctl(open.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
        if done == 0 && info.inode == inode && info.device == device {
            found.push((path, info.flags & LO_FLAGS_READ_ONLY != 0));
        }
    }
    Ok(found)
}

/// A container's /dev may lack the nodes of devices that were made later.
fn make_node(path: &Path, number: u64) -> Result<(), LoopError> {
    match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => Ok(()),
        _ => mknod(
            path,
            SFlag::S_IFBLK,
            Mode::from_bits_truncate(0o660),
            makedev(LOOP_MAJOR, number),
        )
        .or_else(|err| match err {
            nix::Error::EEXIST => Ok(()),
            err => Err(err),
        })
        .map_err(|err| failed("make", path)(err.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Root and loop devices are needed.
    #[test]
    fn a_file_is_a_device_that_grows_with_it() {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("not run: needs root and loop devices");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("volume");
        File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let size = |device: &Path| {
            let name = device.file_name().unwrap().to_str().unwrap();
            fs::read_to_string(format!("/sys/block/{name}/size"))
                .unwrap()
                .trim()
                .parse::<u64>()
                .unwrap()
                * 512
        };
        let device = attach(&file, false).unwrap();
        assert_eq!(attach(&file, false).unwrap(), device, "found again");
        assert_eq!(size(&device), 1 << 20);
        let read_only = attach(&file, true).unwrap();
        assert_ne!(read_only, device);
        assert!(
            fs::write(&read_only, "x").is_err(),
            "nothing is written through it"
        );
        fs::OpenOptions::new()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(2 << 20)
            .unwrap();
        resize(&file).unwrap();
        assert_eq!(size(&device), 2 << 20);
        detach(&file).unwrap();
        assert!(devices_of(&file).unwrap().is_empty());
    }
}
