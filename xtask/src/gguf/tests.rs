//! GGUF files that are written are read back the same, and broken ones are refused.

use std::path::PathBuf;

use super::*;

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("xtask-gguf-{name}-{}", std::process::id()))
}

fn entry(key: &str, value: impl Into<Value>) -> Entry {
    (key.to_string(), value.into())
}

#[test]
fn a_small_file_has_the_layout_of_the_format() {
    let metadata = [entry("general.architecture", "llama"), entry("x.n", 7)];
    let tensors = [("a".to_string(), vec![3], Content::Ones), ("b".to_string(), vec![4, 2], Content::Normal16)];
    let file = scratch("layout");
    write_random(&file, &metadata, &tensors).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(bytes[..24], *b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
    assert_eq!(bytes[24..32], 20u64.to_le_bytes());
    let start = bytes.len() - 64;
    assert_eq!(start % 32, 0);
    assert_eq!(bytes[start..start + 12], [1f32.to_le_bytes(); 3].concat());
    assert!(bytes[start + 12..start + 32].iter().all(|b| *b == 0));
    assert!(bytes[start + 32..start + 48].iter().any(|b| *b != 0));
}

#[test]
fn what_is_written_is_read_back() {
    let metadata = [
        entry("general.architecture", "llama"),
        entry("n", 7),
        entry("eps", 1e-5f32),
        ("words".to_string(), Value::texts(&["", "é", "three"])),
        ("flag".to_string(), Value { kind: 7, bytes: vec![1] }),
        ("big".to_string(), Value { kind: 10, bytes: vec![9; 8] }),
        (
            "numbers".to_string(),
            Value { kind: 9, bytes: [&[5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], &[3; 4]].concat() },
        ),
    ];
    let q4_0 = by_name("Q4_0").unwrap();
    let tensors = [
        Info::f32("norm", [5]),
        Info { name: "w".into(), dimensions: vec![64, 3, 2], ty: q4_0 },
        Info::f32("router", [2, 3]),
    ];
    let data: Vec<Vec<u8>> =
        tensors.iter().map(|t| (0..t.bytes()).map(|b| (b * 7 + t.elements()) as u8).collect()).collect();
    let file = scratch("round");
    write(&file, &metadata, &tensors, |i, out| data[i].chunks(11).try_for_each(|piece| out.put(piece))).unwrap();
    let reader = Reader::open(&file).unwrap();
    assert_eq!((&reader.metadata[..], &reader.tensors[..]), (&metadata[..], &tensors[..]));
    assert_eq!((reader.u32("n"), reader.get("eps").unwrap().as_f32()), (Ok(7), Some(1e-5)));
    assert!(reader.u32("eps").is_err() && reader.u32("none").is_err());
    assert_eq!((reader.tensors[1].bytes(), reader.tensors[1].row_bytes()), (6 * 36, 36));
    for (i, wanted) in data.iter().enumerate() {
        assert_eq!(reader.data(i).as_ref(), Ok(wanted), "{i}");
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn broken_files_are_errors() {
    let file = scratch("broken");
    write(&file, &[entry("k", "v")], &[Info::f32("t", [64])], |_, out| out.put(&[1; 256])).unwrap();
    let whole = std::fs::read(&file).unwrap();
    let read = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        Reader::open(&file).err()
    };
    assert_eq!(read(&whole), None);
    for length in 0..whole.len() {
        assert!(read(&whole[..length]).is_some(), "{length}");
    }
    let mut changed = whole.clone();
    changed[0] = b'X';
    assert!(read(&changed).unwrap().contains("no GGUF file"));
    changed = whole.clone();
    changed[15] = 0xff;
    assert!(read(&changed).unwrap().contains("makes no sense"));
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn the_data_must_be_as_long_as_the_tensor() {
    let file = scratch("length");
    for (bytes, wanted) in [(31, "missing"), (33, "too much")] {
        let written = write(&file, &[], &[Info::f32("t", [8])], |_, out| out.put(&vec![0; bytes]));
        assert!(written.unwrap_err().contains(wanted));
    }
    std::fs::remove_file(&file).unwrap();
}
