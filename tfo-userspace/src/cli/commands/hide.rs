//! `tfo hide` and `tfo show`.

use anyhow::{Context as _, Result};

use crate::{
    cli::args::{Hide, Show, Target},
    control::Request,
    dataplane::pins::Bpffs,
    model::guards::Hidden,
    util::output::{json, print},
};

/// Hides Fast Open, or lists the orders in force.
pub(super) async fn hide(args: &Hide, bpffs: &Bpffs) -> Result<()> {
    let interface = args.interface.as_deref();
    if !args.list {
        return order(interface, bpffs, &args.target, true).await;
    }
    let show = |interface: &str, answer: &str| {
        let hidden: Vec<Hidden> = serde_json::from_str(answer).context("the answer is not valid")?;
        if args.json {
            return print(&json(&serde_json::json!({"interface": interface, "hidden": hidden}))?);
        }
        let names: Vec<_> = hidden.iter().map(Hidden::to_string).collect();
        let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
        print(&format!("{interface}: hidden: {names}"))
    };
    super::send(interface, bpffs, |interface| Request::HideList { interface }, show).await
}

/// Takes back an order of `tfo hide`.
pub(super) async fn show(args: &Show, bpffs: &Bpffs) -> Result<()> {
    order(args.interface.as_deref(), bpffs, &args.target, false).await
}

async fn order(interface: Option<&str>, bpffs: &Bpffs, target: &Target, on: bool) -> Result<()> {
    let what = target.hidden().context("give --all, --service or --source")?;
    let request = |interface| Request::Hide { interface, what: what.clone(), on };
    super::send(interface, bpffs, request, |interface, answer| print(&format!("{interface}: {answer}"))).await
}
