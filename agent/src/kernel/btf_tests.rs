//! BTF made by hand, broken BTF, and the running kernel's own.

use super::*;

/// Name, type and the raw offset word of a member.
pub(crate) struct MemberOf(pub(crate) &'static str, pub(crate) u32, pub(crate) u32);

/// A BTF blob under construction.
#[derive(Default)]
pub(crate) struct Blob {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
    /// Bytes of the base's strings, in split BTF.
    base_strings: u32,
}

impl Blob {
    /// A module's split BTF: ids and string offsets go on behind those of `base`.
    pub(crate) fn behind(base: &Self) -> Self {
        Self {
            count: base.count,
            base_strings: u32::try_from(base.strings.len()).unwrap(),
            ..Self::default()
        }
    }

    fn name(&mut self, name: &str) -> u32 {
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        if name.is_empty() {
            return 0;
        }
        let at = self.base_strings + u32::try_from(self.strings.len()).unwrap();
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        for word in words {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
    }

    pub(crate) fn int(&mut self, name: &str, size: u32) -> u32 {
        let name = self.name(name);
        self.words(&[name, 1 << 24, size, size * 8]);
        self.count += 1;
        self.count
    }

    pub(crate) fn typedef(&mut self, name: &str, to: u32) -> u32 {
        let name = self.name(name);
        self.words(&[name, 8 << 24, to]);
        self.count += 1;
        self.count
    }

    pub(crate) fn structure(&mut self, name: &str, size: u32, members: &[MemberOf]) -> u32 {
        self.composite(name, size, members, 4 << 24)
    }

    pub(crate) fn bit_field_structure(
        &mut self,
        name: &str,
        size: u32,
        members: &[MemberOf],
    ) -> u32 {
        self.composite(name, size, members, (1 << 31) | (4 << 24))
    }

    fn composite(&mut self, name: &str, size: u32, members: &[MemberOf], kind: u32) -> u32 {
        let name = self.name(name);
        let names: Vec<u32> = members.iter().map(|member| self.name(member.0)).collect();
        let count = u32::try_from(members.len()).unwrap();
        self.words(&[name, kind | count, size]);
        for (name, member) in names.into_iter().zip(members) {
            self.words(&[name, member.1, member.2]);
        }
        self.count += 1;
        self.count
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (types, strings) = (self.types.len(), self.strings.len());
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, types, types, strings] {
            bytes.extend_from_slice(&u32::try_from(word).unwrap().to_le_bytes());
        }
        bytes.extend_from_slice(&self.types);
        bytes.extend_from_slice(&self.strings);
        bytes
    }
}

#[test]
fn members_inside_anonymous_structs_and_behind_typedefs_are_found() {
    let mut blob = Blob::default();
    let word = blob.int("u32", 4);
    let inner = blob.structure("", 8, &[MemberOf("a", word, 0), MemberOf("b", word, 32)]);
    let alias = blob.typedef("inner_t", inner);
    blob.structure(
        "outer",
        16,
        &[MemberOf("", inner, 64), MemberOf("named", alias, 0)],
    );
    let btf = Btf::parse(&blob.bytes()).unwrap();
    assert_eq!(btf.member("outer", "b").unwrap().byte(), 12);
    assert_eq!(btf.member("outer", "named.b").unwrap().byte(), 4);
    assert_eq!(btf.member("outer", "c"), None);
    assert_eq!(btf.member("nobody", "b"), None);
    assert_eq!(btf.struct_size("outer"), Some(16));
}

#[test]
fn a_modules_structs_are_found_beside_the_kernels_and_through_its_types() {
    let mut kernel = Blob::default();
    let word = kernel.int("u32", 4);
    let inner = kernel.structure("inner", 8, &[MemberOf("a", word, 32)]);
    let mut module = Blob::behind(&kernel);
    let own = module.structure("own", 4, &[MemberOf("b", word, 0)]);
    module.structure(
        "outer",
        16,
        &[MemberOf("in", inner, 0), MemberOf("own", own, 64)],
    );
    let btf = Btf::parse(&kernel.bytes()).unwrap();
    let btf = btf.with_module(&module.bytes()).unwrap();
    assert_eq!(btf.member("outer", "in.a").unwrap().byte(), 4);
    assert_eq!(btf.member("outer", "own.b").unwrap().byte(), 8);
    assert_eq!(btf.member("inner", "a").unwrap().byte(), 4);
}

#[test]
fn every_truncation_is_an_error_or_a_shorter_table_never_a_panic() {
    let mut blob = Blob::default();
    let word = blob.int("u32", 4);
    blob.structure("outer", 16, &[MemberOf("a", word, 0)]);
    let bytes = blob.bytes();
    for length in 0..bytes.len() {
        assert!(Btf::parse(&bytes[..length]).is_err(), "length {length}");
    }
}

#[test]
fn an_unknown_kind_is_named() {
    let mut blob = Blob::default();
    blob.words(&[0, 31 << 24, 0]);
    let error = Btf::parse(&blob.bytes()).unwrap_err();
    assert!(error.to_string().contains("known kind"), "{error}");
}

#[test]
fn a_struct_that_contains_itself_ends() {
    let mut blob = Blob::default();
    blob.structure("loop", 8, &[MemberOf("", 1, 0)]);
    let btf = Btf::parse(&blob.bytes()).unwrap();
    assert_eq!(btf.member("loop", "x"), None);
}

#[test]
fn a_missing_file_says_what_to_do() {
    let error = Btf::read(Path::new("/nonexistent/btf")).unwrap_err();
    assert!(
        error.to_string().contains("CONFIG_DEBUG_INFO_BTF"),
        "{error}"
    );
}
