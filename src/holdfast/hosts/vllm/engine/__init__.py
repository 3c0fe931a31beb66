"""An engine core: its busy loop through a fault, its requests rewound, its workers told to go on."""
