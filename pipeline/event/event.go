// Package event turns records into events and events into records: it finds the
// type by the schema id, derives the envelope where a topic has none, reads and
// writes CloudEvents headers, and encodes JSON as Avro.
//
// Start at [Decoder] (decoder.go) for reading and [Encoder] (encoder.go) for
// writing. One goroutine owns each [Decoder], [Encoder] and [Envelope];
// [OutputHeaders] and [Type] are immutable. A record's value has the Confluent
// frame, which package codec implements.
package event
