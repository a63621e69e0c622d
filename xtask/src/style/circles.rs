//! Files of the library use each other in one direction only. A file in a folder may use the folder's `mod.rs`, for
//! that is where definitions for all of them lie; nothing else may lead back to where it began.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    Offence,
    files::Source,
    imports::{self, Uses},
};

/// A use that may be part of a circle: which file, of which, and why it has to be.
pub type Exception = (&'static str, &'static str, &'static str);

/// Circles that the library cannot do without.
pub const EXCEPTIONS: [Exception; 0] = [];

/// Whether one file uses another.
pub fn uses(sources: &[Source], from: &str, to: &str) -> bool {
    imports::read(sources).get(from).is_some_and(|used| used.contains_key(to))
}

/// One offence for each set of files that use each other: its shortest circle.
pub fn check(sources: &[Source], known: &[Exception]) -> Vec<Offence> {
    let mut uses = imports::read(sources);
    for (from, used) in &mut uses {
        used.retain(|to, _| !is_parent(to, from) && !known.iter().any(|(f, t, _)| f == from && t == to));
    }
    let mut left: BTreeSet<&str> = uses.keys().copied().collect();
    let mut all = Vec::new();
    while let Some(start) = left.pop_first() {
        let Some(circle) = shortest(&uses, start) else { continue };
        let others = among_each_other(&uses, start);
        left.retain(|file| !others.contains(file));
        let smallest = others.iter().filter_map(|file| shortest(&uses, file)).min_by_key(Vec::len).unwrap_or(circle);
        all.push(offence(&uses, &smallest, &others));
    }
    all
}

fn offence(uses: &Uses<'_>, circle: &[&str], others: &BTreeSet<&str>) -> Offence {
    let line = |n: usize| uses[circle[n]][circle[(n + 1) % circle.len()]];
    let back: Vec<String> = (1..circle.len())
        .map(|n| format!("which uses {} in line {}", circle[(n + 1) % circle.len()], line(n)))
        .collect();
    let more: Vec<&str> = others.iter().copied().filter(|file| !circle.contains(file)).collect();
    let among =
        if more.is_empty() { String::new() } else { format!("; also in circles with them: {}", more.join(", ")) };
    let what =
        format!("uses {}, {}{among}; move what both need into a file that uses neither", circle[1], back.join(", "));
    Offence::new(circle[0], line(0), what)
}

/// Whether one file is the `mod.rs` of a folder that the other lies in.
fn is_parent(parent: &str, file: &str) -> bool {
    let folder = parent.strip_suffix("mod.rs").or(parent.strip_suffix("lib.rs"));
    folder.is_some_and(|folder| file.starts_with(folder))
}

/// The shortest way from a file back to it.
fn shortest<'a>(uses: &Uses<'a>, start: &'a str) -> Option<Vec<&'a str>> {
    let mut from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(file) = next.pop_front() {
        for to in uses.get(file)?.keys().copied() {
            if to == start {
                let mut circle = vec![file];
                while circle[circle.len() - 1] != start {
                    circle.push(from[circle[circle.len() - 1]]);
                }
                circle.reverse();
                return Some(circle);
            }
            if !from.contains_key(to) {
                from.insert(to, file);
                next.push_back(to);
            }
        }
    }
    None
}

/// Files that a file leads to and that lead back to it, itself among them.
fn among_each_other<'a>(uses: &Uses<'a>, start: &'a str) -> BTreeSet<&'a str> {
    let reached = |start: &'a str| {
        let (mut seen, mut next) = (BTreeSet::from([start]), vec![start]);
        while let Some(file) = next.pop() {
            let used = uses.get(file).into_iter().flat_map(|used| used.keys().copied());
            next.extend(used.filter(|to| seen.insert(to)));
        }
        seen
    };
    reached(start).into_iter().filter(|file| reached(file).contains(start)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::style::files::tests::sources;

    #[test]
    fn circles_are_found_unless_they_are_known() {
        let all = sources(&[
            ("src/a.rs", "use crate::b::B;\n"),
            ("src/b.rs", "\nuse crate::c;\n"),
            ("src/c.rs", "use crate::a;\n"),
            ("src/d.rs", "use crate::a;\n"),
        ]);
        let what = "uses src/b.rs, which uses src/c.rs in line 2, which uses src/a.rs in line 1; \
            move what both need into a file that uses neither";
        assert_eq!(check(&all, &[]), [Offence::new("src/a.rs", 1, what)]);
        assert_eq!(check(&all, &[("src/c.rs", "src/a.rs", "a test")]), []);
        assert!(uses(&all, "src/c.rs", "src/a.rs") && !uses(&all, "src/a.rs", "src/c.rs"));
    }

    #[test]
    fn a_file_may_use_the_mod_rs_of_its_folder_but_not_through_others() {
        let folder = [("src/a/mod.rs", "mod b;\nuse b::B;\npub struct A;\n"), ("src/a/b.rs", "use super::A;\n")];
        assert_eq!(check(&sources(&folder), &[]), []);
        let outside = [folder[0], ("src/a/b.rs", "use crate::c;\n"), ("src/c.rs", "use crate::a::A;\n")];
        assert_eq!(check(&sources(&outside), &[]).len(), 1);
    }
}
