"""Generated code: the Python text that protects one message type, from a plan's steps to functions.

How the text is made. A step writes one field. It is either a function, which the text calls, or a `Transform`, a few
statements that the text takes in. The functions of one plan stand below each other in one text, `Plan.source`:

    source      = { function }                          nested messages and single draws first, `protect` last
    function    = { "# " name ": " meaning }            what the names in it stand for
                  "def " name "(" arguments "):"
                      [ draw ]                          all codes of the function, in one pop from its pool
                      [ "in0, in1, = source" ]          where the snapshot is a tuple of fields' values
                      [ "target = new()" ]
                      { step }                          in the order in which the message's fields are written
                      "return " result
    draw        = "try: code0, code3, = pop()"  "except IndexError: code0, code3, = refill()"
    step        = "step3(source, target, alias)"        a function
                | [ "value = source.field" ]            a Transform: the value, if it is used,
                  [ "code = code3" ]                    its randomness, if something is drawn,
                  statements "target.field = out"       and its statements, from these to `out`

Names that end in a number belong to the step of that number. `alias` is the pseudonym function. Statements are written
in this package and in `dpmesh.policy.kinds`: nothing in them is from outside but numbers and the names of fields, which
are identifiers or quoted. They define no functions and hold no comprehensions. No text depends on a value that is
protected, and no source, traceback or error holds one.

`source` keeps texts and compiles them. `steps` and `nested_steps` make them.
"""
