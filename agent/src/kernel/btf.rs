//! Struct layouts from the running kernel's BTF (`/sys/kernel/btf/vmlinux`).
//!
//! Format: Documentation/bpf/btf.rst in the kernel's tree. Only what offsets need is read: sizes of structs and
//! places of members, through anonymous structs and unions and through typedefs and qualifiers. Kinds are
//! skipped by their length; an unknown kind ends the reading with an error, since its length is unknown.
//!
//! A module's BTF (`/sys/kernel/btf/<module>`) is split: it goes on where the kernel's ends, in type ids as well as in offsets
//! into the strings (btf.rst, "BTF base"; `btf_parse_module`, kernel/bpf/btf.c). [`Btf::with_module`] appends it.

use std::{collections::HashMap, path::Path};

/// Where the kernel shows its own BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why BTF could not be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    /// The file cannot be read.
    #[error(
        "{path} cannot be read ({reason}): this kernel was built without BTF; boot a kernel with CONFIG_DEBUG_INFO_BTF=y"
    )]
    Unreadable {
        /// The file.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// The data is not what the format says.
    #[error(
        "the kernel's BTF is broken at byte {at}: {what}; boot a kernel whose BTF `bpftool btf dump file /sys/kernel/btf/vmlinux` can read"
    )]
    Broken {
        /// Byte offset within the file.
        at: usize,
        /// What was expected.
        what: &'static str,
    },
}

/// Where a member lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bits from the start of the outermost struct.
    pub bit_offset: u64,
    /// Bits of a bit field; 0 for an ordinary member.
    pub bits: u32,
    /// The member's type.
    type_id: u32,
}

impl Place {
    /// Whole bytes from the start of the struct.
    #[must_use]
    pub fn byte(&self) -> u64 {
        self.bit_offset / 8
    }
}

#[derive(Debug)]
struct Member {
    name_offset: u32,
    type_id: u32,
    bit_offset: u32,
    bits: u32,
}

#[derive(Debug)]
enum Type {
    /// Struct or union.
    Composite {
        size: u32,
        members: Vec<Member>,
    },
    /// Typedef, const, volatile, restrict or type tag: a name for another type.
    Alias(u32),
    Other,
}

/// A parsed `.BTF` blob.
#[derive(Debug)]
pub struct Btf {
    types: Vec<Type>,
    strings: Vec<u8>,
    /// Structs by name; the first of that name wins, as `bpftool` shows them.
    structs: HashMap<String, Vec<u32>>,
}

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;

impl Btf {
    /// Reads and parses a file.
    ///
    /// # Errors
    /// If it cannot be read or is broken.
    pub fn read(path: &Path) -> Result<Self, BtfError> {
        let bytes = std::fs::read(path).map_err(|error| BtfError::Unreadable {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        Self::parse(&bytes)
    }

    /// Parses a whole blob, little endian.
    ///
    /// # Errors
    /// [`BtfError::Broken`] with the place.
    pub fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        let empty = Self {
            types: vec![Type::Other],
            strings: Vec::new(),
            structs: HashMap::new(),
        };
        empty.with_module(bytes)
    }

    /// Appends a module's split BTF, whose base this is. A struct that both have is the kernel's.
    ///
    /// # Errors
    /// [`BtfError::Broken`] with the place.
    pub fn with_module(mut self, bytes: &[u8]) -> Result<Self, BtfError> {
        let header = Reader { bytes, at: 0 };
        if header.u16_at(0)? != MAGIC {
            return Err(BtfError::Broken {
                at: 0,
                what: "the magic number 0xeb9f",
            });
        }
        let header_len = header.u32_at(4)? as usize;
        let section = |offset: usize| -> Result<&[u8], BtfError> {
            let start = header_len.saturating_add(header.u32_at(offset)? as usize);
            let end = start.saturating_add(header.u32_at(offset + 4)? as usize);
            bytes.get(start..end).ok_or(BtfError::Broken {
                at: offset,
                what: "a section inside the file",
            })
        };
        self.strings.extend_from_slice(section(16)?);
        let mut types = Reader {
            bytes: section(8)?,
            at: 0,
        };
        while types.at < types.bytes.len() {
            self.parse_type(&mut types)?;
        }
        Ok(self)
    }

    fn parse_type(&mut self, reader: &mut Reader<'_>) -> Result<(), BtfError> {
        let at = reader.at;
        let name_offset = reader.u32()?;
        let info = reader.u32()?;
        let size_or_type = reader.u32()?;
        let (count, kind, has_bit_fields) = (info & 0xffff, (info >> 24) & 0x1f, info >> 31 == 1);
        let parsed = match kind {
            KIND_STRUCT | 5 => {
                let members = (0..count)
                    .map(|_| parse_member(reader, has_bit_fields))
                    .collect::<Result<Vec<_>, _>>()?;
                Type::Composite {
                    size: size_or_type,
                    members,
                }
            }
            // Typedef, volatile, const, restrict, type tag.
            8..=11 | 18 => Type::Alias(size_or_type),
            // What follows the common header, in bytes: btf.rst, section 2.2.
            other => {
                let trailing = match other {
                    1 | 14 | 17 => 4,
                    2 | 7 | 12 | 16 => 0,
                    3 => 12,
                    6 | 13 => 8 * count,
                    15 | 19 => 12 * count,
                    _ => {
                        return Err(BtfError::Broken {
                            at,
                            what: "a known kind of type",
                        });
                    }
                };
                reader.skip(trailing as usize)?;
                Type::Other
            }
        };
        if kind == KIND_STRUCT && name_offset != 0 {
            let name = self.string(name_offset).to_owned();
            let id = u32::try_from(self.types.len()).unwrap_or(u32::MAX);
            self.structs.entry(name).or_default().push(id);
        }
        self.types.push(parsed);
        Ok(())
    }

    /// Size in bytes of `struct name`.
    #[must_use]
    pub fn struct_size(&self, name: &str) -> Option<u32> {
        let id = *self.structs.get(name)?.first()?;
        match self.types.get(id as usize)? {
            Type::Composite { size, .. } => Some(*size),
            _ => None,
        }
    }

    /// Place of `path` ("se.sum_exec_runtime") in `struct name`; `None` if there is no such member.
    #[must_use]
    pub fn member(&self, name: &str, path: &str) -> Option<Place> {
        self.structs
            .get(name)?
            .iter()
            .find_map(|&id| self.walk(id, path))
    }

    fn walk(&self, id: u32, path: &str) -> Option<Place> {
        let mut place = Place {
            bit_offset: 0,
            bits: 0,
            type_id: id,
        };
        for part in path.split('.') {
            let inner = self.find(place.type_id, part, 0)?;
            place = Place {
                bit_offset: place.bit_offset + inner.bit_offset,
                ..inner
            };
        }
        Some(place)
    }

    /// A member by name, also inside anonymous structs and unions; `depth` bounds cycles in broken data.
    fn find(&self, id: u32, name: &str, depth: u32) -> Option<Place> {
        if depth > 16 {
            return None;
        }
        match self.types.get(id as usize)? {
            Type::Alias(to) => self.find(*to, name, depth + 1),
            Type::Other => None,
            Type::Composite { members, .. } => members.iter().find_map(|member| {
                let here = Place {
                    bit_offset: u64::from(member.bit_offset),
                    bits: member.bits,
                    type_id: member.type_id,
                };
                if member.name_offset != 0 {
                    return (self.string(member.name_offset) == name).then_some(here);
                }
                let inner = self.find(member.type_id, name, depth + 1)?;
                Some(Place {
                    bit_offset: here.bit_offset + inner.bit_offset,
                    ..inner
                })
            }),
        }
    }

    fn string(&self, offset: u32) -> &str {
        let tail = self.strings.get(offset as usize..).unwrap_or_default();
        let end = tail.iter().position(|&byte| byte == 0).unwrap_or(0);
        std::str::from_utf8(&tail[..end]).unwrap_or_default()
    }
}

fn parse_member(reader: &mut Reader<'_>, has_bit_fields: bool) -> Result<Member, BtfError> {
    let name_offset = reader.u32()?;
    let type_id = reader.u32()?;
    let offset = reader.u32()?;
    let (bits, bit_offset) = if has_bit_fields {
        (offset >> 24, offset & 0x00ff_ffff)
    } else {
        (0, offset)
    };
    Ok(Member {
        name_offset,
        type_id,
        bit_offset,
        bits,
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn u16_at(&self, at: usize) -> Result<u16, BtfError> {
        Ok(u16::from_le_bytes(self.array_at(at)?))
    }

    fn u32_at(&self, at: usize) -> Result<u32, BtfError> {
        Ok(u32::from_le_bytes(self.array_at(at)?))
    }

    fn array_at<const N: usize>(&self, at: usize) -> Result<[u8; N], BtfError> {
        self.bytes
            .get(at..at.saturating_add(N))
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(BtfError::Broken {
                at,
                what: "more bytes",
            })
    }

    fn u32(&mut self) -> Result<u32, BtfError> {
        let value = self.u32_at(self.at)?;
        self.at += 4;
        Ok(value)
    }

    fn skip(&mut self, count: usize) -> Result<(), BtfError> {
        self.at = self.at.saturating_add(count);
        if self.at > self.bytes.len() {
            return Err(BtfError::Broken {
                at: self.at,
                what: "more bytes",
            });
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "btf_tests.rs"]
pub(crate) mod tests;
