package pipeline

// headerOverhead approximates the bytes that the record format adds to a header.
const headerOverhead = 10

// Size returns the bytes that the record counts for against a topic's
// max.message.bytes: its key, value and headers. The broker's own framing is
// left to the margin that the Kafka client keeps.
func (r *Record) Size() int { return len(r.Key) + len(r.Value) + HeadersSize(r.Headers) }

// HeadersSize returns the share of headers in [Record.Size].
func HeadersSize(headers []Header) (n int) {
	for _, h := range headers {
		n += len(h.Key) + len(h.Value) + headerOverhead
	}
	return n
}
