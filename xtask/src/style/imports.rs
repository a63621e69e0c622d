//! Which files of the library a file uses: its `use` lines, and paths in its code that begin with `crate::`, `super::`,
//! a module below the file, or a name that `use` brings in. A simple reader that trusts rustfmt's lines and
//! indentation. Code that only tests compile does not count.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::files::{Source, code};

/// A path of names, from the root of the crate.
type Path = Vec<String>;

/// For each file the files that it uses, with the first line that does.
pub type Uses<'a> = BTreeMap<&'a str, BTreeMap<&'a str, usize>>;

/// What one file says.
struct Module<'a> {
    file: &'a str,
    /// Paths that are used anywhere, with their lines.
    used: Vec<(Path, usize)>,
    /// Names that `use` brings into this module, and what they stand for.
    names: HashMap<String, Path>,
    /// Modules all of whose names `use` brings in.
    globs: Vec<Path>,
    /// Names of items that the file itself has.
    items: HashSet<String>,
}

/// All uses between the files of the library.
pub fn read(sources: &[Source]) -> Uses<'_> {
    let library: Vec<&Source> = sources.iter().filter(|source| source.is_library()).collect();
    let tests: HashSet<Path> = library.iter().flat_map(|source| test_modules(source)).collect();
    let is_test = |path: &Path| (1..=path.len()).any(|n| tests.contains(&path[..n]));
    let of_product = library.into_iter().map(|source| (module_path(&source.path), source));
    let of_product: Vec<_> = of_product.filter(|(path, _)| !is_test(path)).collect();
    let known: HashSet<Path> = of_product.iter().map(|(path, _)| path.clone()).collect();
    let modules: HashMap<Path, Module<'_>> =
        of_product.into_iter().map(|(path, source)| (path.clone(), module(path, source, &known))).collect();
    let mut uses = Uses::new();
    for module in modules.values() {
        let used = uses.entry(module.file).or_default();
        for (path, line) in &module.used {
            let Some(file) = defining_file(path, &modules, 8).filter(|file| *file != module.file) else { continue };
            used.entry(file).and_modify(|first: &mut usize| *first = (*first).min(*line)).or_insert(*line);
        }
    }
    uses
}

/// `src/a/b.rs` and `src/a/b/mod.rs` are `a::b`; `src/lib.rs` is the root.
fn module_path(file: &str) -> Path {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    let mut path: Path = path.split('/').map(str::to_string).collect();
    if path.last().is_some_and(|last| last == "mod" || path == ["lib"]) {
        path.pop();
    }
    path
}

/// Modules that this file declares for tests only.
fn test_modules(source: &Source) -> Vec<Path> {
    let own = module_path(&source.path);
    let lines: Vec<&str> = source.text.lines().collect();
    let declared = lines.iter().enumerate().filter(|(_, line)| is_for_tests(line));
    let names = declared.filter_map(|(n, _)| {
        let item = lines[n + 1..].iter().find(|line| !line.trim_start().starts_with("#["))?;
        item.trim().strip_suffix(';')?.rsplit_once("mod ").map(|(_, name)| name.to_string())
    });
    names.map(|name| [own.clone(), vec![name]].concat()).collect()
}

fn is_for_tests(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test")
}

fn module<'a>(own: Path, source: &'a Source, known: &HashSet<Path>) -> Module<'a> {
    let lines = code(&source.text);
    let mut module = Module {
        file: &source.path,
        used: Vec::new(),
        names: HashMap::new(),
        globs: Vec::new(),
        items: lines.iter().filter_map(|line| item(line)).collect(),
    };
    // Paths in code that begin with a name of this file, and their lines.
    let mut by_name: Vec<(Path, usize)> = Vec::new();
    // Names of inline modules around the line, each with its indentation.
    let mut inline: Vec<(usize, String)> = Vec::new();
    let mut n = 0;
    while n < lines.len() {
        let line = lines[n].trim();
        let indentation = lines[n].len() - lines[n].trim_start().len();
        if is_for_tests(line) {
            n = end_of_item(&lines, n);
            continue;
        }
        if line == "}" {
            inline.retain(|(outer, _)| *outer < indentation);
        }
        if let Some(name) = line
            .strip_suffix(" {")
            .and_then(|head| head.split("mod ").nth(1))
            .filter(|_| line.starts_with("mod ") || line.starts_with("pub"))
        {
            inline.push((indentation, name.to_string()));
        }
        let here: Path = own.iter().cloned().chain(inline.iter().map(|(_, name)| name.clone())).collect();
        let absolute = |path: Path| absolute(path, &here, known);
        if let Some(first) = after_use(line) {
            let begin = n;
            let mut tree = first.to_string();
            while !lines[n].contains(';') && n + 1 < lines.len() {
                n += 1;
                tree.push_str(lines[n].trim());
            }
            for (name, path) in leaves(tree.trim_end_matches(';')) {
                let Some(mut path) = absolute(path) else { continue };
                if name == "*" {
                    path.pop();
                    module.globs.push(path.clone());
                } else if inline.is_empty() {
                    module.names.insert(name, path.clone());
                }
                module.used.push((path, begin + 1));
            }
        } else {
            for path in paths(line) {
                match absolute(path.clone()) {
                    Some(path) => module.used.push((path, n + 1)),
                    None => by_name.push((path, n + 1)),
                }
            }
        }
        n += 1;
    }
    for (path, line) in by_name {
        if let Some(first) = module.names.get(&path[0]) {
            module.used.push(([first.clone(), path[1..].to_vec()].concat(), line));
        }
    }
    module
}

/// The name of the item that begins in this line.
fn item(line: &str) -> Option<String> {
    let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_').skip_while(|word| word.is_empty());
    let is_item = |word: &&str| ["fn", "struct", "enum", "union", "trait", "type", "const", "static"].contains(word);
    let is_before = |word: &&str| ["pub", "crate", "super", "in", "unsafe", "extern", "async", ""].contains(word);
    let kind = words.find(|word| !is_before(word))?;
    let name = if is_item(&kind) { words.find(|word| !word.is_empty() && !is_item(word))? } else { return None };
    Some(name.to_string())
}

/// The line behind an item that begins with the attribute in line `n`.
fn end_of_item(lines: &[String], n: usize) -> usize {
    let indentation = |line: &str| line.len() - line.trim_start().len();
    let own = indentation(&lines[n]);
    let mut open = false;
    for (at, line) in lines.iter().enumerate().skip(n) {
        let line_ends = !open && (line.ends_with(';') || line.ends_with('}') || line.ends_with(','));
        if line_ends || open && indentation(line) <= own && line.trim_start().starts_with('}') {
            return at + 1;
        }
        open |= line.ends_with('{');
    }
    lines.len()
}

/// What follows `use`, `pub use` or `pub(crate) use`.
fn after_use(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("use ")?;
    (before.is_empty() || before.starts_with("pub") && before.ends_with(' ') && !before.contains('=')).then_some(after)
}

/// The names that a tree of `use` brings in, and their paths as written.
fn leaves(tree: &str) -> Vec<(String, Path)> {
    if let Some((prefix, group)) = tree.split_once('{') {
        let prefix: Path = prefix.split("::").map(str::trim).filter(|s| !s.is_empty()).map(str::to_string).collect();
        let group = group.rsplit_once('}').map_or(group, |(group, _)| group);
        let inner = split_group(group).into_iter().flat_map(leaves);
        return inner
            .map(|(name, path)| {
                let own = path == ["self"];
                let name = if own && name == "self" { prefix.last().cloned().unwrap_or_default() } else { name };
                (name, if own { prefix.clone() } else { [prefix.clone(), path].concat() })
            })
            .collect();
    }
    let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias.trim())));
    let path: Path = path.split("::").map(|s| s.trim().to_string()).filter(|s| !s.is_empty()).collect();
    let Some(last) = path.last() else { return Vec::new() };
    vec![(alias.unwrap_or(last).to_string(), path)]
}

/// Parts between the commas that are not inside braces.
fn split_group(group: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[begin..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// Paths of at least two names in a line of code.
fn paths(line: &str) -> Vec<Path> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = line.split(|c: char| !is_name(c)).filter(|w| w.contains("::") && !w.starts_with(':'));
    words.map(|w| w.split("::").map(str::to_string).filter(|s| !s.is_empty()).collect()).collect()
}

/// From the root of the crate; None for a path of another crate.
fn absolute(path: Path, here: &Path, known: &HashSet<Path>) -> Option<Path> {
    let mut from = here.clone();
    let mut names = path.into_iter().peekable();
    match names.peek()?.as_str() {
        "crate" => from.clear(),
        "self" | "super" => {}
        first => {
            let child: Path = here.iter().cloned().chain([first.to_string()]).collect();
            return known.contains(&child).then(|| here.iter().cloned().chain(names).collect());
        }
    }
    for name in names {
        match name.as_str() {
            "crate" | "self" => {}
            "super" => drop(from.pop()),
            _ => from.push(name),
        }
    }
    Some(from)
}

/// The file that defines what a path names, through names that other files hand on.
fn defining_file<'a>(path: &Path, modules: &HashMap<Path, Module<'a>>, most: usize) -> Option<&'a str> {
    let depth = (0..=path.len()).rev().find(|n| modules.contains_key(&path[..*n]))?;
    let module = &modules[&path[..depth]];
    let handed_on = path.get(depth).and_then(|name| named(module, name, modules)).filter(|_| most > 0);
    let whole = handed_on.map(|other| [other.clone(), path[depth + 1..].to_vec()].concat());
    whole.and_then(|other| defining_file(&other, modules, most - 1)).or(Some(module.file))
}

/// What a name in a module stands for, if the module has it from elsewhere.
fn named(module: &Module<'_>, name: &String, modules: &HashMap<Path, Module<'_>>) -> Option<Path> {
    let by_glob = || {
        let of =
            |glob: &&Path| modules.get(*glob).is_some_and(|m| m.items.contains(name) || m.names.contains_key(name));
        let glob = module.globs.iter().find(of).filter(|_| !module.items.contains(name))?;
        Some([glob.clone(), vec![name.clone()]].concat())
    };
    module.names.get(name).cloned().or_else(by_glob)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::style::files::tests::sources;

    #[test]
    fn trees_of_use_are_taken_apart() {
        let of = |tree| {
            leaves(tree).into_iter().map(|(name, path)| format!("{name}={}", path.join("::"))).collect::<Vec<_>>()
        };
        assert_eq!(of("a::b"), ["b=a::b"]);
        assert_eq!(of("a::{self, b::{c, d as e}, f}"), ["a=a", "c=a::b::c", "e=a::b::d", "f=a::f"]);
    }

    #[test]
    fn uses_are_found_in_every_form_and_with_their_line() {
        let all = sources(&[
            ("src/lib.rs", "mod a;\nmod b;\n#[cfg(test)]\nmod testing;\n"),
            ("src/a/mod.rs", "mod x;\nmod y;\npub use x::Thing;\n"),
            ("src/a/x.rs", "use std::fs;\nuse super::{\n    y::Y,\n};\n// use crate::b;\nlet s = \"crate::b\";\n"),
            ("src/a/y.rs", "fn f() {\n    crate::b::f();\n}\n"),
            ("src/b.rs", "use crate::a::Thing;\n#[cfg(test)]\nmod tests {\n    use crate::a::y;\n}\n"),
            ("src/testing/mod.rs", "use crate::b;\n"),
            ("src/c.rs", "use crate::{a, d};\nfn f() {\n    a::y::f(d::X);\n}\n"),
            ("src/d/mod.rs", "mod e;\npub use e::*;\nfn g() {\n    e::f()\n}\n"),
            ("src/d/e.rs", "pub const X: u8 = 1;\n"),
        ]);
        let uses = read(&all);
        let of = |file: &str| uses[file].iter().map(|(to, line)| format!("{to}:{line}")).collect::<Vec<_>>();
        assert_eq!(of("src/a/mod.rs"), ["src/a/x.rs:3"]);
        assert_eq!(of("src/a/x.rs"), ["src/a/y.rs:2"]);
        assert_eq!(of("src/a/y.rs"), ["src/b.rs:2"]);
        // Thing is defined in x.rs, whatever file hands it on.
        assert_eq!(of("src/b.rs"), ["src/a/x.rs:1"]);
        assert!(!uses.contains_key("src/testing/mod.rs"));
        // Through a module that is in scope, and through a name that another file hands on with all its others.
        assert_eq!(of("src/c.rs"), ["src/a/mod.rs:1", "src/a/y.rs:3", "src/d/e.rs:3", "src/d/mod.rs:1"]);
        assert_eq!(of("src/d/mod.rs"), ["src/d/e.rs:2"]);
    }
}
