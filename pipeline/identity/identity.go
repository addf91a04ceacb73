// Package identity knows what makes two events the same event. A topic declares the
// parts of the identity of its events, and everything that recognizes an event compares
// the bytes that are made of these parts.
package identity

// An Identity is a list of parts. Without parts, events have no identity, and no
// duplicates are found.
type Identity []Part

// A Part is one part of an identity. Exactly one of Header, ID and Path is set.
type Part struct {
	// Header is the name of a header. Default is the value of an event whose record
	// does not have the header; "" for none.
	Header, Default string
	// ID is the event's own id: the field id, or the topic's expression for the id if the
	// events have no envelope.
	ID bool
	// Path is the path of a string field, or of a key in a map of strings.
	Path []string
}
