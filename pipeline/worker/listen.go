package worker

// Default addresses of the HTTP servers.
const (
	ProcessorListen = "127.0.0.1:9101"
	ProjectorListen = "127.0.0.1:9102"
	ProducerListen  = "127.0.0.1:9103"
)
