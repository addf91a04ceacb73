package nulls

import (
	"strings"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// A Source is the text of an expression and its syntax tree, as the parser returns it.
type Source struct {
	Text []rune
	AST  *celast.AST
}

// An Atom is a part of an expression that a guard can be put in front of: an operand of
// && and ||, a part of a ternary, the body of a macro, or all of it.
type Atom struct {
	ID     int64
	lo, hi int
	body   bool // all of the expression, or of the body of a macro
}

// Atom returns the smallest part that contains an expression.
func (s Source) Atom(id int64) Atom { return s.find(s.AST.Expr(), id, 0, len(s.Text), true) }

// Rewrite returns the expression with guards in front of an atom. A condition becomes
// false if a guard does; otherwise the atom becomes zero.
func (s Source) Rewrite(a Atom, guards []string, condition bool, zero string) string {
	atom := string(s.Text[a.lo:a.hi])
	guard := strings.Join(guards, " && ")
	out := guard + " && " + atom
	if !condition {
		out = guard + " ? " + atom + " : " + zero
		if !a.body {
			out = "(" + out + ")"
		}
	}
	return string(s.Text[:a.lo]) + out + string(s.Text[a.hi:])
}

func (s Source) find(e celast.Expr, id int64, lo, hi int, body bool) Atom {
	lo, hi, bare := s.trim(lo, hi)
	body = body && bare
	if e.Kind() == celast.CallKind && s.AST.SourceInfo().MacroCalls()[e.ID()] == nil {
		at := s.offset(e.ID())
		args := e.AsCall().Args()
		switch e.AsCall().FunctionName() {
		case operators.LogicalAnd, operators.LogicalOr:
			if s.contains(args[0], id) {
				return s.find(args[0], id, lo, at, false)
			}
			return s.find(args[1], id, at+2, hi, false)
		case operators.Conditional:
			colon := s.colon(at)
			switch {
			case s.contains(args[0], id):
				return s.find(args[0], id, lo, at, false)
			case s.contains(args[1], id):
				return s.find(args[1], id, at+1, colon, false)
			}
			return s.find(args[2], id, colon+1, hi, false)
		}
	}
	if arg, from, to := s.inMacro(e, id); arg != nil {
		return s.find(arg, id, from, to, true)
	}
	return Atom{e.ID(), lo, hi, body}
}

// inMacro returns the body of the outermost macro in e that contains an expression, and
// the place of the body.
func (s Source) inMacro(e celast.Expr, id int64) (body celast.Expr, lo, hi int) {
	if call := s.AST.SourceInfo().MacroCalls()[e.ID()]; call != nil && call.AsCall().FunctionName() != operators.Has {
		args := call.AsCall().Args()
		if last := args[len(args)-1]; call.AsCall().IsMemberFunction() && len(args) > 1 && s.contains(last, id) {
			lo, hi = s.lastArgument(s.offset(e.ID()))
			return last, lo, hi
		}
	}
	for _, child := range s.children(e) {
		if body, lo, hi = s.inMacro(child, id); body != nil {
			return body, lo, hi
		}
	}
	return nil, 0, 0
}

func (s Source) contains(e celast.Expr, id int64) bool {
	if e.ID() == id {
		return true
	}
	for _, child := range s.children(e) {
		if s.contains(child, id) {
			return true
		}
	}
	return false
}

// children returns the parts of an expression, as they are in the text.
func (s Source) children(e celast.Expr) (out []celast.Expr) {
	if call := s.AST.SourceInfo().MacroCalls()[e.ID()]; call != nil && call.ID() != e.ID() {
		return operands(call)
	}
	switch e.Kind() {
	case celast.SelectKind:
		out = append(out, e.AsSelect().Operand())
	case celast.CallKind:
		out = operands(e)
	case celast.ListKind:
		out = e.AsList().Elements()
	case celast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			out = append(out, entry.AsMapEntry().Key(), entry.AsMapEntry().Value())
		}
	}
	return out
}

func (s Source) offset(id int64) int {
	o, _ := s.AST.SourceInfo().GetOffsetRange(id)
	return min(max(int(o.Start), 0), len(s.Text))
}

// trim removes white space and parentheses around a part of the text. bare is false if
// it removed parentheses.
func (s Source) trim(lo, hi int) (_, _ int, bare bool) {
	bare = true
	for {
		for lo < hi && strings.ContainsRune(" \t\n", s.Text[lo]) {
			lo++
		}
		for lo < hi && strings.ContainsRune(" \t\n", s.Text[hi-1]) {
			hi--
		}
		if hi-lo < 2 || s.Text[lo] != '(' || s.closing(lo) != hi-1 {
			return lo, hi, bare
		}
		lo, hi, bare = lo+1, hi-1, false
	}
}

// scan calls do for each character from a position on that is not in a string, with
// the depth of brackets before it. It stops when do returns false.
func (s Source) scan(at int, do func(i, depth int) bool) {
	depth, quote := 0, rune(0)
	for i := at; i < len(s.Text); i++ {
		c := s.Text[i]
		switch {
		case quote != 0 && c == '\\':
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		default:
			if !do(i, depth) {
				return
			}
			if strings.ContainsRune("([{", c) {
				depth++
			} else if strings.ContainsRune(")]}", c) {
				depth--
			}
		}
	}
}

// closing returns the place of the bracket that closes the one at a place.
func (s Source) closing(open int) (at int) {
	at = len(s.Text)
	s.scan(open, func(i, depth int) bool {
		if depth == 1 && strings.ContainsRune(")]}", s.Text[i]) {
			at = i
			return false
		}
		return true
	})
	return at
}

// colon returns the place of the colon that belongs to a question mark.
func (s Source) colon(question int) (at int) {
	at, open := len(s.Text)-1, 0
	s.scan(question, func(i, depth int) bool {
		switch {
		case depth == 0 && s.Text[i] == '?':
			open++
		case depth == 0 && s.Text[i] == ':':
			if open--; open == 0 {
				at = i
				return false
			}
		}
		return true
	})
	return at
}

// lastArgument returns the place of the last argument of the call at a place.
func (s Source) lastArgument(call int) (lo, hi int) {
	for call < len(s.Text) && s.Text[call] != '(' {
		call++
	}
	lo, hi = call+1, s.closing(call)
	s.scan(call, func(i, depth int) bool {
		if depth == 1 && s.Text[i] == ',' && i < hi {
			lo = i + 1
		}
		return i < hi
	})
	return min(lo, hi), hi
}

// Zero returns a constant of a type as text.
func Zero(t *types.Type) string {
	switch t.Kind() {
	case types.BoolKind:
		return "false"
	case types.IntKind, types.OpaqueKind: // a decimal mixes with ints
		return "0"
	case types.DoubleKind:
		return "0.0"
	case types.StringKind:
		return "''"
	case types.BytesKind:
		return "b''"
	case types.ListKind:
		return "[]"
	case types.MapKind:
		return "{}"
	case types.TimestampKind:
		return "timestamp(0)"
	case types.DurationKind:
		return "duration('0s')"
	}
	return "..."
}
