# SPDX-License-Identifier: Apache-2.0
"""``avatar evaluate model``: what a generator must reach, one module per claim.

`lips` `recorded` `identity` `hours` `retention` `seams` `blinks` `actions` `frechet` `cost` hold
a claim each; `figures` is what they return, `play` drives the generator, `faces` `gestures`
`objects` look at its frames, `gauge` fits those judges on true renders (a tool), `command` is the
command line.
"""
