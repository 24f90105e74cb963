//! Routes of the calling thread's network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric},
};

/// Returns the destinations of all routes with `fastopen_no_cookie` (RTAX_FASTOPEN_NO_COOKIE), in any table. The kernel
/// takes data from there without a cookie (`tcp_fastopen_no_cookie`).
pub async fn without_cookie() -> Result<Vec<String>> {
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let mut found = Vec::new();
    let questions =
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    let read = async || -> Result<(), rtnetlink::Error> {
        for question in questions {
            let mut routes = handle.route().get(question).execute();
            while let Some(route) = routes.try_next().await? {
                if needs_no_cookie(&route) {
                    found.push(destination(&route));
                }
            }
        }
        Ok(())
    };
    let outcome = read().await;
    connection.abort();
    outcome.context("cannot ask the kernel about its routes")?;
    found.sort();
    found.dedup();
    Ok(found)
}

fn needs_no_cookie(route: &RouteMessage) -> bool {
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => {
            metrics.iter().any(|metric| matches!(metric, RouteMetric::FastopenNoCookie(value) if *value != 0))
        }
        _ => false,
    })
}

/// Returns the destination as `ip route` shows it. A default route has none.
fn destination(route: &RouteMessage) -> String {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    match address {
        Some(address) => format!("{address}/{}", route.header.destination_prefix_length),
        None => "default".to_owned(),
    }
}
