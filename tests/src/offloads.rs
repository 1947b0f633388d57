//! What an interface's driver does in the kernel's place.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

/// An offload, by the number of its request in `linux/ethtool.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Checksums of what is sent.
    Checksum = 0x17,
    /// Segmentation of what is sent.
    TcpSegmentation = 0x1f,
    /// Segmentation of what is sent, by the kernel, as late as possible.
    Segmentation = 0x24,
    /// Putting together what arrives.
    Receive = 0x2c,
}

impl Offload {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Checksum, Self::TcpSegmentation, Self::Segmentation, Self::Receive];

    /// Switches it, on an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set(self, interface: &str, on: bool) -> io::Result<()> {
        #[repr(C)]
        struct Value {
            command: u32,
            data: u32,
        }
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let mut value = Value { command: self as u32, data: on.into() };
        // SAFETY: all zeros are a name that is empty and a null pointer.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the kernel reads a request that points to a value; both outlive the call.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
