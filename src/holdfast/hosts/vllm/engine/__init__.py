"""The engine core: its busy loop through a fault, its requests rewound, its workers restored."""
