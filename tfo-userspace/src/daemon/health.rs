//! Health of `tfo run`: whether all is as the configuration says.

use anyhow::Result;
use tfo_common::keyring::KeyRing;

use super::{controller::Controller, site::Site};
use crate::{dataplane::Datapath, util::secrecy::leaving_no_trace, view::attestation::Attestation};

/// Reads the keys of the map, and compares them with the kernel's and the schedule's. Call it only below
/// [`leaving_no_trace`].
pub(super) fn attest(datapath: &Datapath) -> Result<(KeyRing, Attestation)> {
    let ring = datapath.key_ring()?;
    let attestation = Attestation::of(datapath.pins(), &ring, datapath.info())?;
    Ok((ring, attestation))
}

/// Returns `interfaces` in their order and without duplicates, each with its site.
pub(super) fn each<'a>(
    controller: &'a Controller,
    interfaces: &'a [String],
) -> impl Iterator<Item = (&'a str, Option<&'a Site>)> {
    let is_first = |(place, name): &(usize, &String)| !interfaces[..*place].contains(name);
    interfaces
        .iter()
        .enumerate()
        .filter(is_first)
        .map(|(_, name)| (name.as_str(), controller.sites().iter().find(|site| site.name() == name)))
}

/// Checks that `controller` is attached to all of `interfaces`, with keys in step. The error has all reasons.
pub fn health(controller: &Controller, interfaces: &[String]) -> Result<(), String> {
    let mut reasons: Vec<String> = each(controller, interfaces)
        .filter_map(|(name, site)| {
            let Some(datapath) = site.and_then(Site::attached) else {
                return Some(format!(
                    "{name}: not attached: the interface is gone, or the program was unloaded"
                ));
            };
            match leaving_no_trace(|| attest(datapath).map(|(_, attestation)| attestation.in_step())) {
                Ok(Some(false)) => {
                    Some(format!("{name}: keys are out of step (`tfo keys status` shows them)"))
                }
                Ok(Some(true) | None) => None,
                Err(error) => Some(format!("{name}: cannot read the keys: {error:#}")),
            }
        })
        .collect();
    reasons.extend(controller.keeper().failure().map(|failure| format!("keys: {failure}")));
    if reasons.is_empty() { Ok(()) } else { Err(reasons.join("\n")) }
}
