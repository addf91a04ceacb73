package escape

import (
	"strings"

	celast "cel.dev/cel-go/common/ast"
)

// Unmask puts the original names back into a parsed expression. names is the result of
// [Mask]. It calls refuse for each macro whose variable has such a name: it stays
// masked.
func Unmask(e celast.Expr, names map[string]string, refuse func(macro celast.Expr, word string)) {
	if names == nil {
		return
	}
	variable := map[string]bool{}
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		if x.Kind() != celast.ComprehensionKind {
			return
		}
		for _, name := range []string{x.AsComprehension().IterVar(), x.AsComprehension().IterVar2()} {
			if word, ok := names[name]; ok && !variable[name] {
				variable[name] = true
				refuse(x, word)
			}
		}
	}))
	factory := celast.NewExprFactory()
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		switch x.Kind() {
		case celast.IdentKind:
			name := strings.TrimPrefix(x.AsIdent(), ".")
			if word, ok := names[name]; ok && !variable[name] {
				x.SetKindCase(factory.NewIdent(x.ID(), word))
			}
		case celast.SelectKind:
			s := x.AsSelect()
			word, ok := names[s.FieldName()]
			switch {
			case ok && s.IsTestOnly():
				x.SetKindCase(factory.NewPresenceTest(x.ID(), s.Operand(), word))
			case ok:
				x.SetKindCase(factory.NewSelect(x.ID(), s.Operand(), word))
			}
		}
	}))
}
