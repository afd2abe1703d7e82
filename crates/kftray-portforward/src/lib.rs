//! kftray-portforward
