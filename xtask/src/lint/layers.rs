//! Checks of imports, against the layers of `tfo-userspace` and for circles.
//!
//! The order of the layers is that of the modules in `tfo-userspace/src/lib.rs`, from the top down: only that file has
//! it. Modules without an empty line between them share a layer, and must not import each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use petgraph::{algo::tarjan_scc, graphmap::DiGraphMap};
use syn::{
    File, ItemMod, ItemUse, UseTree,
    visit::{self, Visit},
};

use crate::workspace::root;

/// Path of a module: the names from the root of its crate.
type Module = Vec<String>;

/// Import: the importing file, and the imported one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrow {
    from: Module,
    to: Module,
}

impl fmt::Display for Arrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} uses {}", self.from.join("::"), self.to.join("::"))
    }
}

/// Fails if a layer imports from one above or beside it, or if files import each other in a circle.
pub(super) fn check() -> Result<()> {
    let table = fs::read_to_string(root().join("tfo-userspace/src/lib.rs"))?;
    let layers = layers(&table);
    ensure!(
        layers.len() > 2,
        "tfo-userspace/src/lib.rs has no layers: modules with empty lines between them"
    );
    let mut faults = Vec::new();
    for name in ["tfo-userspace", "tfo-common"] {
        let arrows = arrows(&root().join(name).join("src"))?;
        if name == "tfo-userspace" {
            faults.extend(upward(&layers, &arrows)?);
        }
        faults
            .extend(circles(&arrows).iter().map(|files| format!("{name}: imports run in a circle: {files}")));
    }
    if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("\n")) }
}

/// Returns the layers that the `lib.rs` in `text` names, from the top down.
fn layers(text: &str) -> Vec<BTreeSet<String>> {
    let module = |line: &str| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned());
    let groups = text.split("\n\n").map(|group| group.lines().filter_map(module).collect::<BTreeSet<_>>());
    groups.filter(|group| !group.is_empty()).collect()
}

/// Returns the faults of `arrows` against the order of `layers`.
fn upward(layers: &[BTreeSet<String>], arrows: &BTreeSet<Arrow>) -> Result<Vec<String>> {
    let floor = |module: &Module| {
        let room = &module[0];
        let floor = layers.iter().position(|layer| layer.contains(room));
        floor.with_context(|| format!("{room} has no layer in tfo-userspace/src/lib.rs"))
    };
    let mut faults = Vec::new();
    for arrow in arrows.iter().filter(|arrow| arrow.from[0] != arrow.to[0]) {
        let (from, to) = (floor(&arrow.from)?, floor(&arrow.to)?);
        if from >= to {
            let way = if from == to { "beside" } else { "above" };
            faults.push(format!("tfo-userspace: {arrow}, which is {way} it in src/lib.rs"));
        }
    }
    Ok(faults)
}

/// Returns the imports between the files under `src`, without those of `lib.rs` and `main.rs`.
fn arrows(src: &Path) -> Result<BTreeSet<Arrow>> {
    let mut files = BTreeMap::new();
    collect(src, &mut Vec::new(), &mut files)?;
    let modules: BTreeSet<_> = files.keys().cloned().collect();
    let mut arrows = BTreeSet::new();
    for (module, file) in &files {
        let mut imports = Imports { module: module.clone(), inner: 0, paths: Vec::new() };
        imports.visit_file(file);
        for path in imports.paths {
            // The file that has the item: the longest beginning of the path that is a module.
            let to = (1..=path.len()).rev().map(|len| path[..len].to_vec()).find(|to| modules.contains(to));
            arrows.extend(to.filter(|to| to != module).map(|to| Arrow { from: module.clone(), to }));
        }
    }
    Ok(arrows)
}

fn collect(dir: &Path, above: &mut Module, files: &mut BTreeMap<Module, File>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() {
            above.push(name);
            collect(&path, above, files)?;
            above.pop();
        } else if path.extension().is_some_and(|end| end == "rs") && !["lib", "main"].contains(&&*name) {
            let text = fs::read_to_string(&path)?;
            let file = syn::parse_file(&text).with_context(|| format!("cannot parse {}", path.display()))?;
            files.insert([above.clone(), vec![name]].concat(), file);
        }
    }
    Ok(())
}

/// Collector of all paths in a file that begin at the root of the crate, or at a module above.
struct Imports {
    module: Module,
    /// Depth of nested modules in the file.
    inner: usize,
    paths: Vec<Module>,
}

impl Imports {
    /// Adds a path, as it is written, if it leads out of the file.
    fn add(&mut self, path: &[String]) {
        let above = path.iter().take_while(|name| *name == "super").count();
        let rest = &path[above..];
        let found = match path.first().map(String::as_str) {
            Some("crate") => path[1..].to_vec(),
            Some("super") if above > self.inner => {
                let kept = self.module.len().saturating_sub(above - self.inner);
                [&self.module[..kept], rest].concat()
            }
            _ => return,
        };
        self.paths.push(found);
    }

    fn tree(&mut self, tree: &UseTree, above: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                above.push(path.ident.to_string());
                self.tree(&path.tree, above);
                above.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, above)),
            UseTree::Name(name) => self.add(&[above.as_slice(), &[name.ident.to_string()]].concat()),
            UseTree::Rename(name) => self.add(&[above.as_slice(), &[name.ident.to_string()]].concat()),
            UseTree::Glob(_) => self.add(above),
        }
    }
}

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.inner += 1;
        visit::visit_item_mod(self, module);
        self.inner -= 1;
    }

    fn visit_item_use(&mut self, import: &'ast ItemUse) {
        self.tree(&import.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&names);
        visit::visit_path(self, path);
    }
}

/// Returns the sets of files that import each other, directly or through others.
fn circles(arrows: &BTreeSet<Arrow>) -> Vec<String> {
    let names: Vec<_> =
        arrows.iter().map(|arrow| [&arrow.from, &arrow.to].map(|end| end.join("::"))).collect();
    let graph: DiGraphMap<_, ()> = names.iter().map(|[from, to]| (from.as_str(), to.as_str())).collect();
    let circles = tarjan_scc(&graph).into_iter().filter(|files| files.len() > 1);
    circles.map(|files| files.join(", ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrow(from: &str, to: &str) -> Arrow {
        let module = |name: &str| name.split("::").map(str::to_owned).collect();
        Arrow { from: module(from), to: module(to) }
    }

    #[test]
    fn an_arrow_that_runs_upward_is_a_fault() {
        let layers = layers("//! Text.\n\npub mod top;\n\npub mod one;\npub mod other;\n\npub mod util;\n");
        let upward = |from: &str, to: &str| upward(&layers, &[arrow(from, to)].into()).unwrap();
        assert!(upward("top::a", "util::b").is_empty());
        assert!(upward("one::a", "one::b").is_empty());
        assert_eq!(upward("util::b", "top").len(), 1);
        assert_eq!(upward("one::a", "other").len(), 1);
    }

    #[test]
    fn a_circle_is_found() {
        let arrows = [arrow("a", "b"), arrow("b", "c"), arrow("c", "a"), arrow("a", "d")].into();
        assert_eq!(circles(&arrows), ["c, b, a"]);
        assert!(circles(&[arrow("a", "b"), arrow("b", "c")].into()).is_empty());
    }

    #[test]
    fn every_way_to_write_a_path_is_seen() {
        let text = "use crate::{a::X, b::{self, Y as Z}};\nuse super::c;\nfn f() { super::d::g(); crate::e::h() }\n\
                    mod tests { use super::*; use super::super::i; }";
        let mut imports =
            Imports { module: vec!["m".to_owned(), "n".to_owned()], inner: 0, paths: Vec::new() };
        imports.visit_file(&syn::parse_file(text).unwrap());
        let found: Vec<_> = imports.paths.iter().map(|path| path.join("::")).collect();
        assert_eq!(found, ["a::X", "b::self", "b::Y", "m::c", "m::d::g", "e::h", "m::i"]);
    }
}
