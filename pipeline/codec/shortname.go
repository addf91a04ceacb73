package codec

import "strings"

// ShortName returns the schema's name without its namespace.
func (s *Schema) ShortName() string { return s.Name()[strings.LastIndexByte(s.Name(), '.')+1:] }
