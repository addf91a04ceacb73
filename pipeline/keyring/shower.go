package keyring

import (
	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/seal"
	"millrace/pipeline/topology"
)

// shower decrypts records for answers. It is immutable.
type shower struct {
	ring   *seal.Ring
	fields map[*codec.Schema]*Fields
	hidden *prometheus.CounterVec // by reason
	plain  prometheus.Counter
}

// NewShower returns a function that decrypts the body of a record of one of the
// schemas, as [Fields.Open] does, and counts the hidden fields and the plain ones. It returns nil if
// no schema has encrypted fields. The function is safe for concurrent use.
func (k *Ring) NewShower(e *topology.Encryption, schemas ...*codec.Schema) (func(*codec.Schema, []byte) (query.Decrypted, error), error) {
	s := &shower{ring: k.cache, fields: map[*codec.Schema]*Fields{}, hidden: k.hidden, plain: k.plain}
	for _, schema := range schemas {
		f, err := NewFields(e, schema)
		if err != nil {
			return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
		}
		if f != nil {
			s.fields[schema] = f
		}
	}
	if len(s.fields) == 0 {
		return nil, nil
	}
	return s.show, nil
}

func (s *shower) show(schema *codec.Schema, body []byte) (query.Decrypted, error) {
	f := s.fields[schema]
	if f == nil {
		return query.Decrypted{Type: schema.Root(), Body: body}, nil
	}
	out, err := f.Open(body, s.ring)
	s.plain.Add(float64(len(out.Plain)))
	for _, why := range out.Hidden {
		s.hidden.WithLabelValues(why).Inc()
	}
	return out, err
}
