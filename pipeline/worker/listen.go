package worker

// ProcessorListen is where a processor answers if nothing else is said.
const ProcessorListen = "127.0.0.1:9101"

// ProducerListen is the address that producer serve listens on by default.
const ProducerListen = "127.0.0.1:9103"

// ProjectorListen is where a projector answers if nothing else is said.
const ProjectorListen = "127.0.0.1:9102"
