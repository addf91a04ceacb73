package event

import (
	"strings"

	"millrace/pipeline"
)

// Carrier decides which headers of an input record a record that is made of it gets.
// Headers that describe the old value are not carried over, because the new value has a
// frame of its own: a reader would decode it with the schema in the header. Headers that
// describe the old key are not carried over if the key changed. Dead letters keep the
// old bytes, and therefore all headers.
//
// One goroutine owns a Carrier. The zero Carrier is ready.
type Carrier struct {
	room []pipeline.Header // the rest of a block, so that few records allocate
}

// block is the number of headers that a Carrier allocates at once.
const block = 256

// Carried returns the headers that are carried over. If these are all, it is the same
// slice, and nothing is allocated.
func (c *Carrier) Carried(had []pipeline.Header, newKey bool) []pipeline.Header {
	for i := range had {
		if describes(had[i].Key, newKey) {
			return c.without(had, i, newKey)
		}
	}
	return had
}

// without returns the headers that are carried over. The first that is not is at i.
func (c *Carrier) without(had []pipeline.Header, i int, newKey bool) []pipeline.Header {
	if len(c.room) < len(had) {
		c.room = make([]pipeline.Header, max(block, len(had)))
	}
	out := append(c.room[:0], had[:i]...)
	for _, h := range had[i+1:] {
		if !describes(h.Key, newKey) {
			out = append(out, h)
		}
	}
	c.room = c.room[len(out):]
	return out[:len(out):len(out)]
}

// describes reports whether a header describes the encoding of a record's value, or of
// its key if newKey is set.
//
// Sources: Confluent's wire format (headers __value_schema_id, __key_schema_id), RFC 9110
// section 8 and RFC 9530 (content-...), CloudEvents 1.0 (dataschema, datacontenttype),
// Apicurio Registry's HEADERS handlers, and spring-kafka's and Spring Cloud Stream's type
// headers.
func describes(name string, newKey bool) bool {
	if name == "" {
		return false
	}
	switch name[0] {
	case '_':
		switch name {
		case "__value_schema_id", "__TypeId__", "__ContentTypeId__":
			return true
		case "__key_schema_id", "__KeyTypeId__":
			return newKey
		}
	case 'c', 'C':
		switch strings.ToLower(name) {
		case "content-type", "content-encoding", "content-length", "content-md5", "content-digest", "contenttype",
			CloudEventsPrefix + "datacontenttype", CloudEventsPrefix + "datacontentencoding", CloudEventsPrefix + "dataschema", CloudEventsPrefix + "dataschemaversion":
			return true
		}
	case 'a':
		return strings.HasPrefix(name, "apicurio.value.") || newKey && strings.HasPrefix(name, "apicurio.key.")
	}
	return false
}
