//! The node: uplink, routes, sysctls, addresses.
