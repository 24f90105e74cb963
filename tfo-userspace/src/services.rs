//! `--service`: the groups of ports by which things are counted.

use std::{ops::RangeInclusive, str::FromStr};

use anyhow::{Result, bail};
use ipnet::IpNet;
use tfo_common::{
    service::{NAME_LEN, OTHER, PORTS, Service},
    verdict::Mode,
};

use crate::{datapath::OTHER_NAME, guards::Guards};

/// How many services there may be: the program counts for each on every CPU.
pub const MOST: usize = 4095;

/// A service as the command line names it: `web=80,443,8000-8010`.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its ports.
    pub ports: Vec<RangeInclusive<u16>>,
    /// The addresses of the host that it is served on; none for all.
    pub addresses: Vec<IpNet>,
    /// What may be done to its packets.
    pub mode: Mode,
    /// Its protections: they act in [`Mode::Shield`], and only count elsewhere.
    pub guards: Guards,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "it is NAME=PORTS, such as web=80,443,8000-8010";
        let (name, ports) = text.split_once('=').ok_or(form)?;
        let is_fit = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > NAME_LEN || !name.chars().all(is_fit) {
            return Err(format!("a name has 1 to {NAME_LEN} letters, digits, or . _ -"));
        }
        if name == OTHER_NAME {
            return Err(format!("{OTHER_NAME} is the name of what no service names"));
        }
        let ports = ports.split(',').map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let port = |text: &str| text.parse().ok().filter(|port| *port != 0);
            match (port(first), port(last)) {
                (Some(first), Some(last)) if first <= last => Ok(first..=last),
                _ => Err(format!("`{range}` is no port and no range of ports (1 to 65535); {form}")),
            }
        });
        Ok(Self {
            name: name.to_owned(),
            ports: ports.collect::<Result<_, _>>()?,
            addresses: Vec::new(),
            mode: Mode::Observe,
            guards: Guards::default(),
        })
    }
}

/// All services.
#[derive(Clone, Debug, Default)]
pub struct Services {
    named: Vec<Named>,
    /// What may be done to the packets of all that no service names.
    other: Mode,
}

impl Services {
    /// Those of `named`, if no name and no port is in them twice.
    pub fn new(named: Vec<Named>, other: Mode) -> Result<Self> {
        if named.len() > MOST {
            bail!("there may be {MOST} services, and these are {}", named.len());
        }
        let mut owners: Vec<Option<&str>> = vec![None; PORTS];
        for (i, Named { name, ports, .. }) in named.iter().enumerate() {
            if named[..i].iter().any(|other| other.name == *name) {
                bail!("there are two services {name}: give one of them all the ports");
            }
            for port in ports.iter().cloned().flatten() {
                match owners[usize::from(port)].replace(name) {
                    None => {}
                    Some(owner) => bail!("port {port} of service {name} is one of service {owner} already"),
                }
            }
        }
        Ok(Self { named, other })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// The services that have a name.
    pub fn named(&self) -> &[Named] {
        &self.named
    }

    /// What may be done to the packets of all that no service names.
    pub fn other(&self) -> Mode {
        self.other
    }

    /// The most that may be done to any packet.
    pub fn mode(&self) -> Mode {
        self.named.iter().map(|named| named.mode).fold(self.other, Mode::max)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// Where each is to stand, so that those which were there `before` keep their place and their counters; the rest take
    /// what is free, from the first on. There must be room.
    pub(crate) fn place(&self, before: &[Option<String>]) -> Vec<Option<Service>> {
        let mut places = vec![None; before.len()];
        let is_at = |named: &Named, place: &Option<String>| place.as_ref() == Some(&named.name);
        for named in &self.named {
            if let Some(index) = before.iter().position(|place| is_at(named, place)) {
                places[index] = Service::new(&named.name);
            }
        }
        let mut free = OTHER as usize + 1;
        for named in self.named.iter().filter(|named| !before.iter().any(|place| is_at(named, place))) {
            while places[free].is_some() {
                free += 1;
            }
            places[free] = Service::new(&named.name);
        }
        places
    }

    /// The service of each port, as the index that `places` gives it.
    pub(crate) fn ports(&self, places: &[Option<Service>]) -> Vec<u32> {
        let mut ports = vec![OTHER; PORTS];
        for Named { name, ports: ranges, .. } in &self.named {
            let index = places
                .iter()
                .position(|place| place.and_then(|place| Some(place.name()? == name)) == Some(true));
            for port in ranges.iter().cloned().flatten() {
                ports[usize::from(port)] = index.map_or(OTHER, |index| index as u32);
            }
        }
        ports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Named {
        text.parse().expect("a service")
    }

    #[test]
    fn ports_and_ranges() {
        let web = named("web=80,443,8000-8010");
        assert_eq!(web.name, "web");
        assert_eq!(web.ports, [80..=80, 443..=443, 8000..=8010]);
        for wrong in
            ["web", "=80", "web=", "web=0", "web=2-1", "web=65536", "web=80,", "we b=80", "other=80", "web=a"]
        {
            assert!(wrong.parse::<Named>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_twice() {
        assert!(Services::new(vec![named("a=1-10"), named("b=11")], Mode::Observe).is_ok());
        assert!(Services::new(vec![named("a=1-10"), named("b=10")], Mode::Observe).is_err());
        assert!(Services::new(vec![named("a=1"), named("a=2")], Mode::Observe).is_err());
        assert!(Services::new(vec![named("a=1,1")], Mode::Observe).is_err());
    }

    #[test]
    fn a_service_that_stays_keeps_its_place() {
        let before = ["", "a", "b", ""].map(|name| Some(name.to_owned()).filter(|name| !name.is_empty()));
        let services =
            Services::new(vec![named("c=3"), named("b=2"), named("d=4")], Mode::Observe).expect("services");
        let places = services.place(&before);
        let names: Vec<_> =
            places.iter().map(|place| place.as_ref().and_then(|place| place.name())).collect();
        assert_eq!(names, [None, Some("c"), Some("b"), Some("d")]);
        let ports = services.ports(&places);
        assert_eq!([ports[1], ports[2], ports[3], ports[4]], [OTHER, 2, 1, 3]);
    }
}
