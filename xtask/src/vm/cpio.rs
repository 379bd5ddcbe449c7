//! Writes initramfs archives: the "newc" cpio format the kernel unpacks at boot.
//!
//! Format: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`. Every entry is a
//! header of `070701` and thirteen 8-digit hexadecimal fields, the name with its NUL, padding to 4 bytes,
//! the data, padding to 4 bytes; an entry named `TRAILER!!!` ends the archive. Only what an initramfs
//! of ours needs: directories, regular files and symbolic links, all owned by root. An entry's parents
//! must have been added before it.

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;

/// An archive being written, in memory.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; `name` without a leading slash.
    pub(super) fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, DIRECTORY, &[])
    }

    /// Adds a regular file anyone may read and execute.
    pub(super) fn file(&mut self, name: &str, data: &[u8]) -> Result<()> {
        self.entry(name, EXECUTABLE, data)
    }

    /// Adds a symbolic link to `target`.
    pub(super) fn symlink(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(name, SYMLINK, target.as_bytes())
    }

    /// Ends the archive and hands out its bytes.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<()> {
        let too_large = || format!("{name} is too large for an initramfs");
        let size = u32::try_from(data.len()).with_context(too_large)?;
        let name_size = u32::try_from(name.len() + 1).with_context(too_large)?;
        self.entries += 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name size, checksum
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_format_the_kernel_reads() {
        let mut archive = Archive::default();
        archive.directory("bin").unwrap();
        archive.file("bin/a", b"hello").unwrap();
        archive.symlink("bin/b", "a").unwrap();
        let bytes = archive.finish().unwrap();

        let names_and_data = list(&bytes);
        assert_eq!(
            names_and_data,
            vec![
                ("bin".to_owned(), Vec::new()),
                ("bin/a".to_owned(), b"hello".to_vec()),
                ("bin/b".to_owned(), b"a".to_vec()),
                ("TRAILER!!!".to_owned(), Vec::new()),
            ]
        );
    }

    /// Reads an archive by the format's description.
    fn list(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let aligned = |at: usize| at.div_ceil(4) * 4;
        let mut out = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let header = std::str::from_utf8(&bytes[at..at + 110]).unwrap();
            assert_eq!(&header[..6], "070701");
            let field =
                |n: usize| usize::from_str_radix(&header[6 + 8 * n..14 + 8 * n], 16).unwrap();
            let (size, name_size) = (field(6), field(11));
            let name = &bytes[at + 110..at + 110 + name_size - 1];
            let data = aligned(at + 110 + name_size);
            out.push((
                String::from_utf8(name.to_vec()).unwrap(),
                bytes[data..data + size].to_vec(),
            ));
            at = aligned(data + size);
        }
        out
    }
}
