"""From a name to a component: hook specifications, discovery, registration, built-in sources."""
