//! Network namespaces.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `NS_GET_NSTYPE` of linux/nsfs.h.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// An open network namespace.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// Opens a path such as CNI_NETNS.
    ///
    /// # Errors
    /// Where there is none, or it is not a network namespace.
    pub fn open(path: &Path) -> io::Result<Self> {
        // A FIFO at that path must not hang us.
        let file = {
            use std::os::unix::fs::OpenOptionsExt;
            File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?
        };
        // SAFETY: this request takes no argument.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a network namespace"));
        }
        Ok(Self(file))
    }

    /// Whether it is the one that this thread is in.
    ///
    /// # Errors
    /// Where /proc is not there.
    pub fn is_own(&self) -> io::Result<bool> {
        let own = std::fs::metadata("/proc/thread-self/ns/net")?;
        let this = self.0.metadata()?;
        Ok((own.dev(), own.ino()) == (this.dev(), this.ino()))
    }

    /// Its descriptor.
    pub fn raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Runs something in it and comes back. Were the way back to fail, nothing would run on in the wrong
    /// namespace: the process ends there, which leaves no more than a kill does.
    ///
    /// # Errors
    /// Where it cannot be entered, or what `run` says.
    pub fn within<T>(&self, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        /// Goes home when dropped.
        struct Abroad(File);
        impl Drop for Abroad {
            fn drop(&mut self) {
                if nix::sched::setns(&self.0, nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                    std::process::abort();
                }
            }
        }
        let home = File::open("/proc/thread-self/ns/net")?;
        nix::sched::setns(&self.0, nix::sched::CloneFlags::CLONE_NEWNET)?;
        let _abroad = Abroad(home);
        run()
    }
}
