package metadata

import (
	"slices"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"millrace/pipeline"
)

// A Use is what expressions read of the record of an event. What reads only these parts
// gives the same result as with the whole record.
type Use struct {
	Key   bool
	Names []string // of headers, in order; AllHeaders makes them meaningless
	// AllHeaders means that an expression reads the headers in another way than by a
	// name in its text.
	AllHeaders bool
}

// None reports whether nothing is read.
func (u *Use) None() bool { return !u.Key && !u.AllHeaders && len(u.Names) == 0 }

// Add adds what others read.
func (u *Use) Add(others ...Use) {
	for _, o := range others {
		u.Key, u.AllHeaders = u.Key || o.Key, u.AllHeaders || o.AllHeaders
		u.Names = append(slices.Clone(u.Names), o.Names...)
	}
	slices.Sort(u.Names)
	u.Names = slices.Compact(u.Names)
}

// AppendRead appends the headers that are read and that an expression sees.
func (u *Use) AppendRead(dst, headers []pipeline.Header) []pipeline.Header {
	for i := range headers {
		if h := &headers[i]; (u.AllHeaders || slices.Contains(u.Names, h.Key)) && isText(h) {
			dst = append(dst, *h)
		}
	}
	return dst
}

// AddHeaders adds the headers that an expression reads. isHeaders reports whether a part of
// it is the name headers.
func (u *Use) AddHeaders(e celast.Expr, isHeaders func(celast.Expr) bool) {
	total := 0 // of the uses that are not by a name
	named := func(name string) {
		total--
		u.Add(Use{Names: []string{name}})
	}
	literal := func(e celast.Expr) (string, bool) {
		if e.Kind() != celast.LiteralKind {
			return "", false
		}
		name, ok := e.AsLiteral().(types.String)
		return string(name), ok
	}
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		switch {
		case isHeaders(x):
			total++
		case x.Kind() == celast.SelectKind && isHeaders(x.AsSelect().Operand()):
			named(x.AsSelect().FieldName())
		case x.Kind() == celast.CallKind && len(x.AsCall().Args()) == 2:
			args := x.AsCall().Args()
			of, key := args[0], args[1] // headers['name']
			switch x.AsCall().FunctionName() {
			case operators.In:
				of, key = args[1], args[0]
			case operators.Index:
			default:
				return
			}
			if name, ok := literal(key); ok && isHeaders(of) {
				named(name)
			}
		}
	}))
	u.AllHeaders = u.AllHeaders || total > 0
}
